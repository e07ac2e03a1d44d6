import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from etude.data.demo.harmony import ALL_KEYS
from etude.data.demo.render import INSTRUMENTS, render_track
from etude.data.errors import InputError
from etude.probes.corpus import PROBE_SEED_BASE, CorpusSettings, DemoTracks, open_corpus
from etude.probes.demo_questions import CLIP_SECONDS, PITCHES, chord_class, tempo_class
from etude.probes.splits import SPLITS
from etude.probes.task_types import Clip
from etude.probes.tasks import TASK_NAMES, build_task, feature_rows


def test_no_track_is_in_two_splits(solos: DemoTracks) -> None:
    for name in ("instrument", "pitch"):
        task = build_task(name, solos.labels, seconds=5.0, seed=0)
        tracks = [set(task.tracks[task.rows(split)]) for split in SPLITS]
        assert sum(len(part) for part in tracks) == len(set.union(*tracks))
        assert all(tracks)


def test_every_class_of_the_test_was_trained_on(solos: DemoTracks) -> None:
    for name in ("instrument", "pitch"):
        task = build_task(name, solos.labels, seconds=5.0, seed=0)
        trained, tested = task.class_counts("train"), task.class_counts("test")
        assert all(trained[label] for label, count in tested.items() if count)


def test_notes_lie_within_their_clip_and_are_what_the_score_says(solos: DemoTracks) -> None:
    task = build_task("pitch", solos.labels, seconds=5.0, seed=0)
    for example in task.examples:
        (span,) = example.spans
        assert span is not None and isinstance(example.truth, int)
        start, end = span
        assert 0.0 <= start < start + 0.25 <= end <= CLIP_SECONDS
        pitch = PITCHES[example.truth]
        assert any(
            note["start"] == start and note["pitch"] == pitch
            for note in solos.labels[example.clip.track]["notes"]
        )


def test_a_track_of_15_seconds_gives_three_clips_that_do_not_overlap() -> None:
    labels = [{"key": {"name": key.name}} for key in ALL_KEYS * 4]
    task = build_task("key", labels, seconds=15.0, seed=0)
    assert len(task.examples) == 3 * len(labels)
    assert sorted({example.clip.start for example in task.examples}) == [0.0, 5.0, 10.0]


def test_the_label_of_a_solo_is_its_lead(solos: DemoTracks) -> None:
    task = build_task("instrument", solos.labels, seconds=5.0, seed=0)
    for example in task.examples:
        assert isinstance(example.truth, int)
        assert INSTRUMENTS[example.truth] == solos.labels[example.clip.track]["lead"]


def test_too_few_tracks_are_refused(solos: DemoTracks) -> None:
    with pytest.raises(InputError, match="raise --tracks"):
        build_task("instrument", solos.labels[:18], seconds=5.0, seed=0)


def test_a_corpus_is_read_again_and_not_rendered_again(tmp_path: Path) -> None:
    settings = CorpusSettings("solo", 2, 16_000, seconds=2.0)
    first = open_corpus(settings, cache=tmp_path)
    written = (tmp_path / settings.folder_name / "audio.npy").stat().st_mtime_ns
    again = open_corpus(settings, cache=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [settings.folder_name]
    assert (tmp_path / settings.folder_name / "audio.npy").stat().st_mtime_ns == written
    np.testing.assert_array_equal(again.audio, first.audio)
    assert again.labels == first.labels


def test_a_track_is_known_apart_at_every_rate_but_has_one_identity(tmp_path: Path) -> None:
    settings = CorpusSettings("solo", 1, 16_000, seconds=2.0)
    tracks = DemoTracks(settings, cache=tmp_path)
    clip = Clip("solo", 0, 0.5, 1.0)
    assert [len(tracks.read(clip, rate)) for rate in (16_000, 24_000)] == [16_000, 24_000]
    other_rate = DemoTracks(replace(settings, sample_rate=24_000), cache=tmp_path)
    other_seed = DemoTracks(replace(settings, seed=1), cache=tmp_path)
    assert tracks.identity == other_rate.identity != other_seed.identity


def test_training_with_the_same_seed_renders_other_tracks(solos: DemoTracks) -> None:
    for base, same in ((PROBE_SEED_BASE, True), (0, False)):
        track = render_track(0, seed=base, kind="solo", seconds=5.0)
        # By way of JSON, as the cached labels are.
        assert (json.loads(json.dumps(track.labels)) == solos.labels[0]) is same


def test_chords_are_what_sounds_in_their_span(mixes: DemoTracks) -> None:
    task = build_task("chord", mixes.labels, seconds=5.0, seed=0)
    assert len(task.outputs) == 24
    for example in task.examples:
        (span,) = example.spans
        assert span is not None and 0.0 <= span[0] < span[0] + 0.5 <= span[1] <= CLIP_SECONDS
        middle = example.clip.start + sum(span) / 2
        sounding = [
            chord
            for chord in mixes.labels[example.clip.track]["chords"]
            if chord["start"] <= middle < chord["end"]
        ]
        assert [chord_class(chord) for chord in sounding] == [example.truth]


def test_a_seventh_counts_as_its_triad() -> None:
    names = {"maj": 0, "maj7": 0, "dom7": 0, "min": 12, "min7": 12}
    for quality, offset in names.items():
        assert chord_class({"root": 7, "quality": quality}) == 7 + offset


def test_tempo_classes_have_equal_ratios_and_hold_both_ends() -> None:
    assert [tempo_class(bpm) for bpm in (60.0, 68.8, 68.9, 103.9, 104.0, 180.0)] == [
        *(0, 0, 1, 3, 4, 7)
    ]


def test_the_style_is_how_chords_are_played_and_whether_drums_are(mixes: DemoTracks) -> None:
    task = build_task("style", mixes.labels, seconds=5.0, seed=0)
    for example in task.examples:
        track = mixes.labels[example.clip.track]
        drums = any(note["pitch"] is None for note in track["notes"])
        assert isinstance(example.truth, int)
        name = f"{track['chord_style']}, {'drums' if drums else 'no drums'}"
        assert task.outputs[example.truth] == name


def test_beats_are_the_scores_within_one_clip_of_each_track(mixes: DemoTracks) -> None:
    task = build_task("beat", mixes.labels, seconds=5.0, seed=0)
    assert len(task.examples) == mixes.num_tracks
    for example in task.examples:
        beats = mixes.labels[example.clip.track]["beats"]
        assert isinstance(example.truth, tuple)
        assert list(example.truth) == [beat for beat in beats if beat < 5.0]
        assert len(example.spans) == 100


def test_what_the_cache_stores_ahead_is_what_the_task_asks(
    solos: DemoTracks, mixes: DemoTracks
) -> None:
    for name in TASK_NAMES:
        labels = (mixes if name not in ("instrument", "pitch") else solos).labels
        if name == "key":
            continue  # 48 tracks are too few for it
        task = build_task(name, labels, seconds=5.0, seed=0)
        assert task.feature_rows == feature_rows(name, labels, seconds=5.0)
