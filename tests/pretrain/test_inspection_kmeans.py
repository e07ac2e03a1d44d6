"""K-means labels of an inspected corpus: those of training, and no encoder is run for them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from training_parts import feature_settings, small_encoder, small_quantizer

from etude.data.audio import decode
from etude.data.inspection.look import inspect_corpus
from etude.data.shards import Corpus, open_corpus
from etude.models.weights import save_encoder
from etude.pretrain import inspection_kmeans
from etude.pretrain.inspection_kmeans import kmeans_counters
from etude.pretrain.quantizer import describe_encoder, save_quantizer


@pytest.fixture
def corpus(small_corpus: Corpus, tmp_path: Path) -> Corpus:
    shutil.copytree(small_corpus.root, tmp_path / "corpus")
    return open_corpus(tmp_path / "corpus")


def test_labels_are_counted_as_training_computes_them(corpus: Corpus) -> None:
    quantizer = small_quantizer()
    save_quantizer(quantizer, corpus.root / "kmeans-tiny.safetensors", report={})
    (corpus.root / "kmeans-begun.part.safetensors").write_bytes(b"not yet")
    counters, problems = kmeans_counters(corpus)
    (usage,) = inspect_corpus(corpus, clips=100, seconds=600, listeners=counters).labels

    expected, clips = np.zeros(quantizer.num_classes, dtype=int), 0
    for name in ("train", "valid"):
        split = corpus.split(name)
        for clip in range(len(split)):
            waveform = torch.from_numpy(decode(split.read_audio_bytes(clip))[0])
            expected += np.bincount(quantizer(waveform[None])[0], minlength=len(expected))
            clips += 1
    assert usage.counts.tolist() == expected.tolist()
    assert (usage.name, usage.classes, usage.clips) == ("kmeans-tiny", len(expected), clips)
    assert problems == []


def test_no_more_clips_of_a_split_are_labelled_than_allowed(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection_kmeans, "CLIPS", 2)
    save_quantizer(small_quantizer(), corpus.root / "kmeans-tiny.safetensors", report={})
    counters, _ = kmeans_counters(corpus)
    (usage,) = inspect_corpus(corpus, clips=100, seconds=600, listeners=counters).labels
    assert usage.clips == 2 * 2


def test_what_cannot_be_counted_cheaply_or_at_all_is_said(corpus: Corpus, tmp_path: Path) -> None:
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    save_encoder(small_encoder(), encoder)
    layer = describe_encoder(encoder, layer=1)
    learned = small_quantizer(settings=layer)
    save_quantizer(learned, corpus.root / "kmeans-learned.safetensors", report={})
    # It is not even looked for.
    shutil.rmtree(encoder)
    slow = feature_settings().model_copy(update={"sample_rate": 16_000})
    save_quantizer(
        small_quantizer(settings=slow), corpus.root / "kmeans-slow.safetensors", report={}
    )
    other = small_quantizer()
    other.corpus = "another"
    save_quantizer(other, corpus.root / "kmeans-other.safetensors", report={})
    (corpus.root / "kmeans-broken.safetensors").write_bytes(b"no such file")

    counters, problems = kmeans_counters(corpus)
    assert [usage.name for counter in counters for usage in counter.usage()] == ["kmeans-other"]
    broken, learned_problem, other_problem, slow_problem = problems
    assert "kmeans-broken.safetensors is not a k-means file" in broken
    assert "kmeans-learned: not counted, for it takes an encoder's" in learned_problem
    assert "kmeans-other: was fitted to another corpus" in other_problem
    assert "kmeans-slow: not counted, for it is for 16000 Hz" in slow_problem
