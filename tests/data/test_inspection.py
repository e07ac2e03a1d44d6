"""A corpus looked at: what was planted is found with its number; damage and time are survived."""

import dataclasses
import math
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from audio_files import tune
from inspection_corpus import Clip, damage, low_passed, white, write_corpus

from etude.data.audio import decode
from etude.data.inspection.figures import Figure, as_json, figures
from etude.data.inspection.findings import findings, oddities
from etude.data.inspection.index import split_names
from etude.data.inspection.labels import token_counters
from etude.data.inspection.look import Inspection, inspect_corpus
from etude.data.inspection.sample import spread
from etude.data.inspection.text import licence_rows, terminal_text, what_was_looked_at
from etude.data.shards import Corpus
from etude.data.tokens import (
    Codes,
    TokenSettings,
    open_tokens,
    shard_keys,
    tokens_root,
    write_token_index,
    write_token_shard,
)

CUT_HZ = 4000.0


def clipped() -> np.ndarray:
    samples = tune(3, seed=3)
    samples[1000:1010] = 1.0
    return samples


TRAIN_0 = [
    Clip("plain-0", white(3, seed=1), "plain", {"labels": {"artist": "Ann "}}),
    Clip("plain-1", white(3, seed=2), "plain", {"labels": {"artist": "Ann "}}),
    Clip("quiet", white(3, seed=3) / 1000),
    Clip("offset", white(3, seed=4) - white(3, seed=4).mean() + np.float32(0.02)),
    Clip("cut", low_passed(white(3, seed=5), CUT_HZ)),
]
TRAIN_1 = [
    Clip("clipped", clipped(), metadata={"source_sample_rate": 22050}),
    Clip("twin", white(3, seed=1), metadata={"source_sample_rate": 44100}),
    Clip("damaged", white(2.5, seed=7), metadata={"source_sample_rate": 44100}),
]
VALID = [
    Clip("leaked-copy", white(3, seed=2), metadata={"metadata": {"artist": "Bea"}}),
    Clip("leaked-track", white(3, seed=8), "plain", {"metadata": {"artist": "Bea"}}),
    Clip("leaked-artist", white(3, seed=9), metadata={"artist": "ANN", "source": "plain.flac"}),
    Clip("clean", white(3, seed=10)),
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    shards = {"train-000000": TRAIN_0, "train-000001": TRAIN_1, "valid-000000": VALID}
    made = write_corpus(tmp_path_factory.mktemp("planted") / "corpus", shards)
    damage(made, "train", 7)
    return made


@pytest.fixture(scope="module")
def found(corpus: Corpus) -> Inspection:
    return inspect_corpus(corpus, clips=100, seconds=600)


def value(inspection: Inspection, key: str, split: str = "train") -> float:
    (figure,) = (figure for figure in figures(inspection) if figure.key == key)
    found = figure.values[split]
    assert isinstance(found, int | float)
    return found


def named(found: Inspection, kind: str) -> list[tuple[str, ...]]:
    return [leak.examples for leak in found.leaks if leak.kind == kind]


def test_amounts_are_those_of_the_index(found: Inspection) -> None:
    assert [value(found, key) for key in ("clips", "tracks", "shards")] == [8, 7, 2]
    assert [value(found, key, "valid") for key in ("clips", "tracks", "shards")] == [4, 4, 1]
    assert value(found, "hours") == pytest.approx((7 * 3 + 2.5) / 3600)
    (lengths,) = (f.values["train"] for f in figures(found) if f.key == "clip_seconds")
    assert lengths == pytest.approx(np.percentile([3.0] * 7 + [2.5], (5, 25, 50, 75, 95)))


def test_shares_of_odd_clips_are_of_those_that_could_be_measured(found: Inspection) -> None:
    assert value(found, "looked_at") == 8 and value(found, "damaged") == 1
    for key in ("dc", "clipped", "mostly_silent", "cut", "nothing_above_4000"):
        assert value(found, key) == 1 / 7, key
        assert value(found, key, "valid") == 0, key
    assert value(found, "full_scale") == 10 / (7 * 3 * 24_000)
    assert value(found, "silent_frames") == pytest.approx(1 / 7, abs=0.01)


def test_levels_are_those_of_the_stored_samples(corpus: Corpus, found: Inspection) -> None:
    split = corpus.split("train")
    levels, peaks = [], []
    for clip in range(7):
        samples, _ = decode(split.read_audio_bytes(clip))
        samples = samples.astype(np.float64)
        levels.append(20 * math.log10(samples.std()))
        peaks.append(20 * math.log10(np.abs(samples).max()))
    rows = {figure.key: figure.values["train"] for figure in figures(found)}
    assert rows["rms"] == pytest.approx(np.percentile(levels, (5, 25, 50, 75, 95)), abs=1e-3)
    assert rows["peak"] == pytest.approx(np.percentile(peaks, (5, 25, 50, 75, 95)), abs=1e-3)


def test_odd_clips_are_named_with_what_is_odd(found: Inspection) -> None:
    odd = {oddity.title: oddity.clips for oddity in oddities(found)}
    assert odd == {
        "mostly silent": (("train: quiet", "100% silent, level -80.0 dBFS"),),
        "a DC offset": (("train: offset", "mean +0.0200 of full scale"),),
        "touching full scale": (("train: clipped", "10 of 72,000 samples"),),
        "a spectrum that is cut off": (("train: cut", "nothing above 4,125 Hz"),),
    }


def test_copies_are_found_by_their_audio_wherever_they_are(found: Inspection) -> None:
    copies = found.copies
    assert (copies.groups, copies.extra_clips, copies.groups_across_tracks) == (2, 2, 2)
    assert set(copies.examples) == {
        ("train: plain-0", "train: twin"),
        ("train: plain-1", "valid: leaked-copy"),
    }


def test_everything_on_both_sides_of_the_split_is_counted(found: Inspection) -> None:
    assert [(leak.kind, leak.found, leak.held_out) for leak in found.leaks] == [
        ("track", 1, 4),
        ("audio", 1, 4),
        ("source", 2, 4),
        ("artist", 1, 3),  # one track has none
    ]
    assert named(found, "track") == [("valid: leaked-track",)]
    assert named(found, "audio") == [("valid: leaked-copy",)]
    assert [set(names) for names in named(found, "source")] == [
        {"valid: leaked-track (plain.flac)", "valid: leaked-artist (plain.flac)"}
    ]
    assert named(found, "artist") == [("valid: leaked-artist (ann)",)]


def test_a_damaged_clip_is_passed_over_and_named(found: Inspection) -> None:
    (damaged,) = found.damages
    assert damaged.clip == "train: damaged"
    assert "train-000001.tar: member damaged.flac is damaged" in damaged.problem
    assert "train: damaged" not in found.samples[0].clips


def test_every_finding_is_said_and_a_good_corpus_has_none(
    found: Inspection, tmp_path: Path
) -> None:
    said = "\n".join(findings(found))
    for words in (
        "1 of the clips that were opened is damaged",
        "1 of 4 held-out clips are of tracks that train has too",
        "1 of 4 held-out clips are, to the byte, clips of train",
        "2 of 4 held-out tracks are of files that train has too",
        "1 of 3 held-out tracks are by artists that train has too",
        "2 clips have the same audio as another clip (2 recordings, 2 of them in several tracks)",
        f"{1 / 11:.1%} of the clips that were looked at: a spectrum that is cut off",
    ):
        assert words in said, words

    shards = {f"{name}-000000": [Clip(name, white(3, seed=len(name)))] for name in ("train", "va")}
    good = inspect_corpus(write_corpus(tmp_path / "good", shards), clips=9, seconds=600)
    assert list(findings(good)) == []
    assert "Nothing out of the ordinary." in terminal_text(good, found=[], problems=[])


def test_rates_of_sources_are_counted_per_track(found: Inspection) -> None:
    assert found.tracks.source_rates["train"] == Counter({44100: 2, 22050: 1})
    assert found.tracks.read == {"valid": 4, "train": 7}


def test_a_corpus_without_held_out_clips_leaks_nothing(tmp_path: Path) -> None:
    alone = inspect_corpus(
        write_corpus(tmp_path / "c", {"train-000000": TRAIN_0}), clips=9, seconds=600
    )
    assert alone.leaks == () and [split.name for split in alone.splits] == ["train"]
    assert "held out" not in terminal_text(alone, found=[], problems=[])


def test_damaged_json_is_named_and_its_audio_is_still_heard(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c", {"train-000000": TRAIN_0})
    damage(corpus, "train", 3, part="json")
    found = inspect_corpus(corpus, clips=9, seconds=600)
    assert [(d.clip, "offset.json is damaged" in d.problem) for d in found.damages] == [
        ("train: offset", True)
    ]
    assert value(found, "damaged") == 0 and found.tracks.read == {"train": 3}


def test_a_corpus_of_damage_alone_has_figures_without_values(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c", {"train-000000": TRAIN_1})
    for clip in range(3):
        damage(corpus, "train", clip)
    found = inspect_corpus(corpus, clips=9, seconds=600)
    assert value(found, "damaged") == 3 and len(found.damages) == 3
    assert {f.values["train"] for f in figures(found)[8:]} == {None}
    assert as_json(found)["spectrum"].keys() == {"hertz"}
    assert "level (RMS)" in terminal_text(found, found=[], problems=[])


def test_time_that_runs_out_is_said_and_cuts_all_splits_alike(corpus: Corpus) -> None:
    found = inspect_corpus(corpus, clips=3, seconds=1e-9)
    assert [(s.looked_at, s.chosen) for s in found.samples] == [(1, 3), (1, 3)]
    assert found.out_of_time
    assert what_was_looked_at(found) == (
        "Looked at 1 of 8 train clips and 1 of 4 valid clips: 6 were to be, but 1e-09 s of reading "
        "were over (--seconds allows more)."
    )
    # The index is still read whole.
    assert found.copies.groups == 2 and value(found, "clips") == 8


def test_the_sample_is_the_same_every_time(corpus: Corpus) -> None:
    first, second = (inspect_corpus(corpus, clips=3, seconds=600) for _ in range(2))
    assert [s.clips for s in first.samples] == [s.clips for s in second.samples]
    assert [len(s.clips) + s.damaged for s in first.samples] == [3, 3]
    assert not first.out_of_time
    assert what_was_looked_at(first).startswith("Looked at 3 of 8 train clips and 3 of 4 valid")


@pytest.mark.parametrize(("length", "count"), [(1000, 64), (1000, 63), (7, 7), (5, 99), (1, 1)])
def test_the_sample_has_one_clip_of_every_equal_stretch(length: int, count: int) -> None:
    numbers = spread(length, count)
    taken = min(length, count)
    assert len(set(numbers)) == taken
    ends = [length * (stretch + 1) // taken for stretch in range(taken)]
    stretches = np.searchsorted(ends, sorted(numbers), side="right")
    assert stretches.tolist() == list(range(taken))
    assert numbers == spread(length, count)


def test_every_beginning_of_the_sample_is_spread_over_the_split() -> None:
    numbers = spread(10_000, 500)
    for heard in (10, 50, 200):
        edges = [0, *sorted(numbers[:heard]), 10_000]
        assert max(np.diff(edges)) < 4 * 10_000 / heard


def test_clips_of_one_place_in_a_track_are_not_preferred() -> None:
    # Tracks of ten clips, stretches of ten clips.
    places = Counter(number % 10 for number in spread(10_000, 1000))
    assert len(places) == 10 and max(places.values()) < 160


def test_hours_per_licence_are_those_of_the_index(tmp_path: Path) -> None:
    licensed = [
        Clip("a", white(3), metadata={"metadata": {"licence": "CC0"}}),
        Clip("b", white(3, seed=1), metadata={"metadata": {"licence": "CC BY"}}),
        Clip("c", white(3, seed=2), metadata={"metadata": {"licence": "CC BY"}}),
    ]
    corpus = write_corpus(tmp_path / "c", {"train-000000": licensed})
    found = inspect_corpus(corpus, clips=9, seconds=600)
    assert as_json(found)["licences"] == {"CC BY": 6.0, "CC0": 3.0}
    header, *rows = licence_rows(found)
    assert [(row[0], row[1], row[3]) for row in rows] == [
        ("CC BY", "all clips", "66.7%"),
        ("CC0", "all clips", "33.3%"),
    ]


SETTINGS = TokenSettings(
    codec="numbers",
    weights_sha256="0" * 64,
    sample_rate=24_000,
    hop_samples=2400,
    codebooks=2,
    codebook_size=8,
)


def codes(seed: int, num_samples: int) -> Codes:
    random = np.random.default_rng(seed)
    frames = num_samples // SETTINGS.hop_samples
    # The second book never uses its upper half.
    return np.stack([random.integers(8, size=frames), random.integers(4, size=frames)], 1).astype(
        np.uint16
    )


@pytest.fixture(params=[False, True], ids=["plain", "packed"])
def encoded(corpus: Corpus, tmp_path: Path, request: pytest.FixtureRequest) -> Corpus:
    packing = SETTINGS.packing if request.param else None
    shutil.copytree(corpus.root, tmp_path / "encoded")
    copy = Corpus(**{**vars(corpus), "root": tmp_path / "encoded"})
    tokens_root(copy, "numbers").mkdir(parents=True)
    lengths = {name: copy.split(name).num_samples for name in split_names(copy)}
    for number, ((shard, keys), (_, rows)) in enumerate(
        zip(shard_keys(copy), copy.shard_rows(), strict=True)
    ):
        made = [codes(100 * number + r, int(lengths[shard.split][r])) for r in rows]
        path = tokens_root(copy, "numbers") / shard.file
        write_token_shard(path, "numbers", zip(keys, made, strict=True), packing=packing)
    write_token_index(copy, "numbers", SETTINGS, packing=packing)
    return copy


def test_stored_tokens_are_counted_per_codebook(encoded: Corpus) -> None:
    counters, problems = token_counters(encoded)
    found = inspect_corpus(encoded, clips=100, seconds=600, listeners=counters)
    expected = np.concatenate(
        [
            codes(100 * number + row, int(encoded.split(shard.split).num_samples[row]))
            for number, (shard, rows) in enumerate(encoded.shard_rows())
            for row in rows
            if (shard.split, row) != ("train", 7)  # its audio is damaged
        ]
    )
    assert problems == [] and [usage.name for usage in found.labels] == ["numbers/q0", "numbers/q1"]
    for usage, book in zip(found.labels, expected.T, strict=True):
        counts = np.bincount(book, minlength=8)
        share = counts[counts > 0] / counts.sum()
        assert usage.counts.tolist() == counts.tolist() and usage.clips == 11
        assert usage.used == np.count_nonzero(counts)
        assert usage.perplexity == pytest.approx(np.prod(share**-share))
        assert usage.most_common[0] == (counts.argmax(), pytest.approx(share.max()))
    assert found.labels[1].used == 4


def test_damaged_unfinished_and_foreign_tokens_are_told(encoded: Corpus) -> None:
    counters, _ = token_counters(encoded)
    path = tokens_root(encoded, "numbers") / "valid-000000.tar"
    whole = path.read_bytes()
    data = bytearray(whole)
    data[512 + 140] ^= 1  # of the first clip: behind the head of the array
    path.write_bytes(data)
    found = inspect_corpus(encoded, clips=100, seconds=600, listeners=counters)
    assert "valid: leaked-copy" in [damage.clip for damage in found.damages]
    assert found.labels[0].clips == 10
    # Its audio is fine.
    assert value(found, "damaged", "valid") == 0

    settings = dataclasses.replace(SETTINGS, codebook_size=7)
    packing = open_tokens(encoded, "numbers").packing
    path.write_bytes(whole)
    write_token_index(encoded, "numbers", settings, packing=packing)
    counters, _ = token_counters(encoded)
    found = inspect_corpus(encoded, clips=100, seconds=600, listeners=counters)
    assert any("codes must be below 7, but one is 7" in d.problem for d in found.damages)

    (tokens_root(encoded, "begun")).mkdir()
    path.write_bytes(data[:-512])
    counters, problems = token_counters(encoded)
    assert counters == []
    begun, cut = problems
    assert "begun but is not finished" in begun and "valid-000000.tar" in cut


def test_a_label_that_is_nearly_constant_stands_among_the_findings(encoded: Corpus) -> None:
    counters, _ = token_counters(encoded)
    found = inspect_corpus(encoded, clips=100, seconds=600, listeners=counters)
    assert not any("training refuses" in line for line in findings(found))
    found.labels[1].counts[3] += 10_000
    (line,) = [line for line in findings(found) if "training refuses" in line]
    assert line.startswith("numbers/q1: label 3 makes up 9")


def test_every_figure_says_what_it_is_over(found: Inspection) -> None:
    bases = {figure.key: figure.basis for figure in figures(found)}
    index = {key for key, basis in bases.items() if basis == "index"}
    assert index == {"hours", "clips", "tracks", "shards", "bytes", "clip_seconds"}
    entries = as_json(found)["figures"]
    assert {key: entry["basis"] for key, entry in entries.items()} == bases
    assert all(isinstance(figure, Figure) for figure in figures(found))
