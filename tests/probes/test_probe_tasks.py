import json
from pathlib import Path

import numpy as np
import pytest

from etude.data.demo.harmony import ALL_KEYS
from etude.data.demo.render import INSTRUMENTS, render_track
from etude.data.errors import InputError
from etude.probes.corpus import PROBE_SEED_BASE, Corpus, open_corpus
from etude.probes.splits import SPLITS
from etude.probes.tasks import CLIP_SECONDS, PITCHES, build_task


def test_no_track_is_in_two_splits(solos: Corpus) -> None:
    for name in ("instrument", "pitch"):
        task = build_task(name, solos.labels, seconds=5.0, seed=0)
        tracks = [set(task.tracks[task.rows(split)]) for split in SPLITS]
        assert sum(len(part) for part in tracks) == len(set.union(*tracks))
        assert all(tracks)


def test_every_class_of_the_test_was_trained_on(solos: Corpus) -> None:
    for name in ("instrument", "pitch"):
        task = build_task(name, solos.labels, seconds=5.0, seed=0)
        trained, tested = task.class_counts("train"), task.class_counts("test")
        assert all(trained[label] for label, count in tested.items() if count)


def test_notes_lie_within_their_clip_and_are_what_the_score_says(solos: Corpus) -> None:
    task = build_task("pitch", solos.labels, seconds=5.0, seed=0)
    for example in task.examples:
        assert example.span is not None
        start, end = example.span
        assert 0.0 <= start < start + 0.25 <= end <= CLIP_SECONDS
        pitch = PITCHES[example.label]
        assert any(
            note["start"] == start and note["pitch"] == pitch
            for note in solos.labels[example.clip.track]["notes"]
        )


def test_a_track_of_15_seconds_gives_three_clips_that_do_not_overlap() -> None:
    labels = [{"key": {"name": key.name}} for key in ALL_KEYS * 4]
    task = build_task("key", labels, seconds=15.0, seed=0)
    assert len(task.examples) == 3 * len(labels)
    assert sorted({example.clip.start for example in task.examples}) == [0.0, 5.0, 10.0]


def test_the_label_of_a_solo_is_its_lead(solos: Corpus) -> None:
    task = build_task("instrument", solos.labels, seconds=5.0, seed=0)
    for example in task.examples:
        assert INSTRUMENTS[example.label] == solos.labels[example.clip.track]["lead"]


def test_too_few_tracks_are_refused(solos: Corpus) -> None:
    with pytest.raises(InputError, match="raise --tracks"):
        build_task("instrument", solos.labels[:18], seconds=5.0, seed=0)


def test_a_corpus_is_read_again_and_not_rendered_again(solos: Corpus, cache: Path) -> None:
    again = open_corpus(solos.settings, cache=cache)
    assert [path.name for path in cache.iterdir()] == [solos.settings.folder_name]
    np.testing.assert_array_equal(again.audio, solos.audio)
    assert again.labels == solos.labels


def test_training_with_the_same_seed_renders_other_tracks(solos: Corpus) -> None:
    seed = solos.settings.seed
    for base, same in ((PROBE_SEED_BASE, True), (0, False)):
        track = render_track(0, seed=base + seed, kind="solo", seconds=5.0)
        # By way of JSON, as the cached labels are.
        assert (json.loads(json.dumps(track.labels)) == solos.labels[0]) is same
