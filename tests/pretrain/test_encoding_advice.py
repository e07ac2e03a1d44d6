"""Stored or online: what is counted is what there is, and the advice follows from the numbers."""

import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from training_parts import ROOT

from etude.data.errors import InputError
from etude.data.shards import Corpus, open_corpus
from etude.data.tokens import tokens_root
from etude.pretrain.codec import Codec
from etude.pretrain.encoding import encode_chunks, token_settings, tracks_of
from etude.pretrain.encoding_advice import Advice, Rate, Workload, advise, sidecar_bytes

NAME = "encodec_24khz"
ADVICE = Advice(
    Workload(
        encoded_seconds=36_000.0,
        packed_bytes=28_000_000,
        plain_bytes=44_000_000,
        crop_seconds=5.0,
        crops_per_pass=7_200,
    ),
    encoding=Rate(amount=50.0, seconds=5.0),
    online=Rate(amount=100.0, seconds=5.0),
    reading=Rate(amount=50_000.0, seconds=5.0),
    reading_from="temporary packed tokens",
    there=False,
)
"""Ten hours of audio at ten times real time; 50 ms for a crop online, 0.1 ms to read one."""


def files(root: Path) -> dict[str, bytes]:
    every = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in every}


@pytest.mark.parametrize("layout", ["plain", "packed"])
def test_the_size_that_is_said_before_is_the_size_on_disk(
    encoded: Corpus, packed: Corpus, codec: Codec, layout: str
) -> None:
    corpus = packed if layout == "packed" else encoded
    on_disk = sum(path.stat().st_size for path in tokens_root(corpus, NAME).glob("*.tar"))
    assert sidecar_bytes(corpus, token_settings(codec), packed=layout == "packed") == on_disk


def test_audio_that_is_encoded_for_two_shards_counts_twice(
    short_corpus: Corpus, codec: Codec
) -> None:
    advice = advise(short_corpus, codec, crop_seconds=1.0, lanes=2, seconds=0.01)
    frames = 0
    with ThreadPoolExecutor(4) as readers:
        for shard, rows in short_corpus.shard_rows():
            split = short_corpus.split(shard.split)
            for step in encode_chunks(split, tracks_of(split, rows), codec, 4, 150, readers):
                frames += sum(len(part.codes) for part in step)
    counted = advice.workload.encoded_seconds
    assert counted == pytest.approx(frames / codec.frame_rate, abs=0.5)
    assert counted > sum(shard.seconds for shard in short_corpus.shards)
    heard = advice.workload.crops_per_pass * advice.workload.crop_seconds
    assert heard == pytest.approx(short_corpus.seconds("train"))


def test_the_advice_leaves_the_corpus_as_it_is_with_tokens_or_without(
    short_corpus: Corpus, encoded: Corpus, packed: Corpus, codec: Codec
) -> None:
    said = []
    for corpus in (short_corpus, encoded, packed):
        before = files(corpus.root)
        advice = advise(corpus, codec, crop_seconds=1.0, lanes=2, seconds=0.01)
        said.append((advice.reading_from, advice.there))
        assert files(corpus.root) == before
        for rate in (advice.encoding, advice.online, advice.reading):
            assert rate.amount > 0 and rate.seconds > 0
    assert said == [
        ("temporary packed tokens", False),
        ("the corpus' own plain tokens", True),
        ("the corpus' own packed tokens", True),
    ]


def test_tokens_of_other_weights_are_read_but_are_not_what_is_asked_for(
    encoded: Corpus, codec: Codec
) -> None:
    other = Codec.__new__(Codec)
    other.__dict__.update(codec.__dict__)
    other.weights_sha256 = "f" * 64
    assert not advise(encoded, other, crop_seconds=1.0, lanes=2, seconds=0.01).there


def test_storing_pays_after_as_many_passes_as_it_costs() -> None:
    # Stored: an hour. A pass online: 7200 * 50 ms = 0.1 h; of reading: 0.0002 h.
    assert ADVICE.storing_hours == pytest.approx(1.0)
    assert ADVICE.online_hours(7_200) == pytest.approx(0.1)
    assert ADVICE.break_even == pytest.approx(1 / (0.1 - 0.0002))
    assert "more than 10.02 times" in ADVICE.verdict()


@pytest.mark.parametrize(("passes", "verdict"), [(9, "online is cheaper"), (11, "store them")])
def test_the_length_of_the_run_decides(passes: int, verdict: str) -> None:
    run = replace(ADVICE, workload=replace(ADVICE.workload, crops=passes * 7_200))
    assert run.verdict().startswith(f"verdict: {verdict}")
    assert f"hears the corpus {passes}.00 times" in run.verdict()
    assert f"the run of {passes * 7_200:,} crops" in run.lines()[0]


def test_tokens_that_are_there_or_that_are_slow_to_read_decide_alone() -> None:
    there = replace(ADVICE, there=True)
    assert there.verdict().startswith("verdict: read the tokens that are there")
    slow = replace(ADVICE, there=True, reading=Rate(amount=50.0, seconds=5.0))
    assert slow.break_even is None
    assert slow.verdict().startswith("verdict: online. To read stored tokens takes longer here.")


def test_every_number_says_how_it_came_to_be_known_and_every_verdict_what_online_costs() -> None:
    lines = ADVICE.lines()
    for row in lines[0].splitlines():
        assert re.search(r"  (measured, 5\.0 s.*|counted|measured x counted)$", row), row
    assert "size, packed        28.00 MB" in re.sub(" {3,}", " " * 8, lines[0])
    assert "differ near a crop's start" in lines[-1]


def test_the_command_measures_says_which_and_changes_nothing(
    short_corpus: Corpus, weights: Path, tmp_path: Path
) -> None:
    shutil.copytree(short_corpus.root, tmp_path / "corpus")
    corpus = open_corpus(tmp_path / "corpus")

    def run(*words: object) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "launch/encode.py", str(corpus.root), *map(str, words)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    before = files(corpus.root)
    length = ("--updates", 1000, "--global-batch", 64, "--crop-seconds", 1, "--lanes", 2)
    done = run("--weights", weights, "--advise", *length)
    assert done.returncode == 0, done.stderr
    assert "the run of 64,000 crops" in done.stdout and "temporary packed" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("verdict: store them (--packed)")
    assert files(corpus.root) == before
    for words, message in [
        (("--advise",), "--weights FILE is needed"),
        (("--weights", weights, "--updates", 5), "tell --advise of a run"),
        (("--weights", weights, "--advise", "--updates", 5), "belong together"),
        (("--weights", weights, "--advise", "--crop-seconds", -1), "must be above 0"),
    ]:
        refused = run(*words)
        assert refused.returncode == 2 and message in refused.stderr


def test_crops_longer_than_every_clip_are_refused(short_corpus: Corpus, codec: Codec) -> None:
    with pytest.raises(InputError, match="is as long as a crop"):
        advise(short_corpus, codec, crop_seconds=60.0)
