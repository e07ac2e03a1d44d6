"""Each data set's reader: answers, splits and groups of its layout, and what it says of others."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import local_copies as copies
import numpy as np
import pytest
import soundfile

from etude.data.errors import DataError, InputError
from etude.probes.datasets import emomusic, giantsteps, gtzan, magnatagatune, nsynth
from etude.probes.datasets.audio_files import FileSource, cut, survey
from etude.probes.datasets.catalogue import DATASET_TASKS
from etude.probes.datasets.opening import OpenDataset, open_dataset
from etude.probes.splits import SPLITS
from etude.probes.task_types import Clip, ProbeTask

Read = dict[str, tuple[object, str]]


def asked(opened: OpenDataset, number: int = 0) -> Read:
    """Answer and split by file name, where each file is one clip."""
    task = opened.tasks[number]
    read = {
        opened.source.paths[e.clip.track].name: (_named(task, e.truth), e.split)
        for e in task.examples
    }
    assert len(read) == len(task.examples)
    return read


def _named(task: ProbeTask, truth: int | tuple[float, ...]) -> object:
    if isinstance(truth, int):
        return task.outputs[truth]
    if task.answer == "multilabel":
        return {name for name, holds in zip(task.outputs, truth, strict=True) if holds}
    return truth


GTZAN = {
    "train": ["blues.00000", "jazz.00054"],
    "valid": ["rock.00099"],
    "test": ["hiphop.00012", "blues.00013"],
}


def a_gtzan(folder: Path) -> Path:
    return copies.gtzan(folder, GTZAN)


def a_giantsteps(folder: Path) -> Path:
    trained = [
        ("11", "D# minor", "2", "The First Band"),
        ("12", "C minor / F# minor", "2", "The First Band"),
        ("13", "B major ", "2", "Los Amigos"),
        ("14", "G minor", "1", "The First Band"),
        ("15", "-", "0", "The First Band"),
        ("16", "A major", "2", "Second Choir, Los Amigos"),
        ("17", "A# minor", "2", "Third Duo, Second Choir"),
    ]
    return copies.giantsteps(folder, trained, {"0010089": "F# major", "21": "a minor"})


def an_emomusic(folder: Path) -> Path:
    songs = [
        ("Artist Three", "development", 5.5, 3.25),
        ("ARTIST  three!", "development", 1.0, 9.0),
        ("Artist Eight", "development", 4.0, 4.5),
        ("Artist Three", "evaluation", 6.0, 2.0),
    ]
    folder = copies.emomusic(folder, songs)
    for number in range(2, 6):
        copies.sound(folder / "clips_45seconds" / f"{number}.mp3", seconds=4.0)
    return folder


def an_nsynth(folder: Path) -> Path:
    return copies.nsynth(folder)


def a_magnatagatune(folder: Path) -> Path:
    rows = [
        ("0/a_band-an_album-01-a_song-0-29.mp3", {"guitar": 1, "rock": 1}),
        ("b/a_band-an_album-02-b_song-30-59.mp3", {"guitar": 1}),
        ("c/c_band-an_album-01-c_song-0-29.mp3", {"rock": 1}),
        ("c/c_band-an_album-02-e_song-0-29.mp3", {"guitar": 1}),
        ("d/d_band-an_album-01-d_song-0-29.mp3", {}),
        ("f/d_band-an_album-01-d_song-29-58.mp3", {"guitar": 1}),
    ]
    for path, _ in rows:
        copies.sound(folder / "mp3" / path)
    return copies.magnatagatune(folder, rows)


def a_jamendo(folder: Path) -> Path:
    rows = {
        "train": [
            "track_0000214\tartist_000014\talbum_000031\t14/214.mp3\t2.0\tgenre---punkrock",
            "track_0000382\tartist_000020\talbum_000046\t82/382.mp3\t1.0\tgenre---pop\tgenre---rock",
        ],
        "validation": [
            "track_1\tartist_1\talbum_1\t01/1.mp3\t1.0\tgenre---rock",
            "track_4\tartist_4\talbum_4\t04/4.mp3\t1.0\tgenre---pop",
        ],
        "test": [
            "track_2\tartist_2\talbum_2\t02/2.mp3\t1.0\tgenre---rock",
            "track_3\tartist_2\talbum_3\t03/3.mp3\t1.0\tgenre---pop\tgenre---jazz",
        ],
    }
    return copies.jamendo(folder, rows)


VOCALSET = {
    "train": ["belt/f1_arpeggios_belt_c_a_00.wav", "belt/f1_arpeggios_belt_c_a_01.wav"],
    "valid": ["trillo/m11_scales_trillo_a_00.wav"],
    "test": ["vocal_fry/m3_row_vocal_fry_02.wav"],
}


def a_vocalset(folder: Path) -> Path:
    copies.vocalset(folder, VOCALSET, task="s")
    return copies.vocalset(folder, VOCALSET, task="t")


Build = Callable[[Path], Path]

COPIES: dict[str, tuple[Build, str]] = {
    "gtzan": (a_gtzan, "gtzan_genre"),
    "giantsteps": (a_giantsteps, "giantsteps_key"),
    "emomusic": (an_emomusic, "emomusic"),
    "nsynth": (an_nsynth, "nsynth_pitch"),
    "magnatagatune": (a_magnatagatune, "magnatagatune"),
    "jamendo": (a_jamendo, "jamendo_genre"),
    "vocalset": (a_vocalset, "vocalset_singer"),
}


def test_every_data_set_has_a_copy_here() -> None:
    assert {task.source.name for task in DATASET_TASKS.values()} == set(COPIES)


def test_gtzan_has_the_genre_of_the_name_and_the_split_of_the_lists(tmp_path: Path) -> None:
    opened = open_dataset(a_gtzan(tmp_path), ["gtzan_genre"])
    assert asked(opened) == {
        "blues.00000.wav": ("blues", "train"),
        "jazz.00054.wav": ("jazz", "train"),
        "rock.00099.wav": ("rock", "valid"),
        "hiphop.00012.wav": ("hiphop", "test"),
        "blues.00013.wav": ("blues", "test"),
    }
    assert "hiphop" in opened.report() and "no example in training" in opened.report()


def test_gtzan_without_lists_takes_the_fault_filtered_split_of_torchaudio(tmp_path: Path) -> None:
    folder = tmp_path / "genres_original" / "blues"
    folder.mkdir(parents=True)
    copies.sound(folder / "blues.00000.wav")
    listing = gtzan.read(tmp_path)
    counts = [sum(r.split == split for r in listing.recordings) for split in SPLITS]
    assert counts == [443, 197, 290]
    # Kereliuk's list by numbers: validation begins with tracks 1 to 12, the test with 13 to 29.
    blues = {r.group: r.split for r in listing.recordings if r.answer == 0}
    assert [blues[f"blues.{n:05d}"] for n in (0, 11, 12, 28, 29)] == [
        *("valid", "valid", "test", "test", "train")
    ]


def test_gtzan_with_some_of_the_lists_names_those_that_lack(tmp_path: Path) -> None:
    (a_gtzan(tmp_path) / "valid_filtered.txt").unlink()
    with pytest.raises(DataError, match="valid_filtered.txt is not"):
        gtzan.read(tmp_path)


def test_giantsteps_leaves_out_what_is_uncertain_and_splits_by_artist(tmp_path: Path) -> None:
    opened = open_dataset(a_giantsteps(tmp_path), ["giantsteps_key"])
    # "los amigos" is of the validation by its hash, and whoever worked with them, and with those.
    assert asked(opened) == {
        "11.LOFI.mp3": ("Eb minor", "train"),
        "13.LOFI.mp3": ("B major", "valid"),
        "16.LOFI.mp3": ("A major", "valid"),
        "17.LOFI.mp3": ("Bb minor", "valid"),
        "0010089.LOFI.mp3": ("Gb major", "test"),
        "21.LOFI.mp3": ("A minor", "test"),
    }
    assert opened.left_out == (
        "2 tracks of MTG-keys whose key is not certain (C is not 2)",
        "1 tracks of MTG-keys with several keys",
    )


def test_emomusic_takes_its_test_from_mediaeval_and_validation_by_artist(tmp_path: Path) -> None:
    opened = open_dataset(an_emomusic(tmp_path), ["emomusic"])
    assert asked(opened) == {
        "2.mp3": ((5.5, 3.25), "train"),
        "3.mp3": ((1.0, 9.0), "train"),
        "4.mp3": ((4.0, 4.5), "valid"),
        "5.mp3": ((6.0, 2.0), "test"),
    }
    assert opened.tasks[0].outputs == ("arousal", "valence")
    groups = [e.group for e in opened.tasks[0].examples]
    assert groups[0] == groups[1] != groups[2]  # "ARTIST  three!" is "artist three"


def test_nsynth_has_family_and_pitch_of_one_source_and_draws_instruments(tmp_path: Path) -> None:
    opened = open_dataset(an_nsynth(tmp_path), ["nsynth_instrument", "nsynth_pitch"])
    assert asked(opened)["flute_acoustic_002-069-100.wav"] == ("flute", "test")
    assert asked(opened, 1) == {
        "bass_acoustic_000-040-100.wav": ("40", "train"),
        "vocal_synthetic_001-127-100.wav": ("127", "train"),
        "synth_lead_synthetic_000-000-100.wav": ("0", "valid"),
        "flute_acoustic_002-069-100.wav": ("69", "test"),
        "flute_acoustic_002-070-100.wav": ("70", "test"),
    }
    for task in opened.tasks:
        assert len(set(task.tracks[task.rows("test")].tolist())) == 1
        assert {e.clip for e in task.examples} == {e.clip for e in opened.tasks[0].examples}
        assert {e.clip.seconds for e in task.examples} == {4.0}


def test_magnatagatune_has_the_50_most_frequent_tags_and_splits_by_folder(tmp_path: Path) -> None:
    opened = open_dataset(a_magnatagatune(tmp_path), ["magnatagatune"])
    # Of equals the one that stands first.
    assert opened.tasks[0].outputs == ("guitar", "rock", *(f"rare {n}" for n in range(48)))
    assert list(asked(opened).values()) == [
        ({"guitar", "rock"}, "train"),
        ({"guitar"}, "train"),
        ({"rock"}, "valid"),
        ({"guitar"}, "valid"),
        (set(), "test"),
        ({"guitar"}, "test"),
    ]
    # Both test clips are of one track.
    task = opened.tasks[0]
    assert len(set(task.tracks[task.rows("test")].tolist())) == 1
    assert "49 of 50 have no example in the test" in opened.report()


def test_jamendo_has_the_tags_of_the_official_files_and_draws_artists(tmp_path: Path) -> None:
    opened = open_dataset(a_jamendo(tmp_path), ["jamendo_genre"])
    assert asked(opened) == {
        "214.low.mp3": ({"genre---punkrock"}, "train"),
        "382.low.mp3": ({"genre---pop", "genre---rock"}, "train"),
        "1.low.mp3": ({"genre---rock"}, "valid"),
        "4.low.mp3": ({"genre---pop"}, "valid"),
        "2.low.mp3": ({"genre---rock"}, "test"),
        "3.low.mp3": ({"genre---jazz", "genre---pop"}, "test"),
    }
    task = opened.tasks[0]
    assert len(set(task.tracks[task.rows("test")].tolist())) == 1
    assert "1 in the test have no example in training: genre---jazz" in opened.report()


def test_vocalset_reads_technique_and_singer_from_the_lists(tmp_path: Path) -> None:
    opened = open_dataset(a_vocalset(tmp_path), ["vocalset_technique", "vocalset_singer"])
    assert asked(opened) == {
        "f1_arpeggios_belt_c_a_00.wav": ("belt", "train"),
        "f1_arpeggios_belt_c_a_01.wav": ("belt", "train"),
        "m11_scales_trillo_a_00.wav": ("trillo", "valid"),
        "m3_row_vocal_fry_02.wav": ("vocal_fry", "test"),
    }
    assert [answer for answer, _ in asked(opened, 1).values()] == ["f1", "f1", "m11", "m3"]
    groups = [e.group for e in opened.tasks[0].examples]
    assert groups[0] == groups[1] != groups[2]  # chunks of one recording


@pytest.mark.parametrize("name", COPIES)
def test_a_missing_folder_is_named_with_where_the_data_set_comes_from(
    tmp_path: Path, name: str
) -> None:
    task = COPIES[name][1]
    with pytest.raises(InputError) as caught:
        open_dataset(tmp_path / "nowhere", [task])
    source = DATASET_TASKS[task].source
    for text in (f"--data {name}=", "nowhere", source.page, source.layout):
        assert text in str(caught.value)


@pytest.mark.parametrize("name", COPIES)
def test_another_layout_is_told_with_what_was_found(tmp_path: Path, name: str) -> None:
    (tmp_path / "songs").mkdir()
    (tmp_path / "notes.txt").touch()
    task = COPIES[name][1]
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path, [task])
    source = DATASET_TASKS[task].source
    for text in (source.page, source.layout, "it holds notes.txt, songs/"):
        assert text in str(caught.value)


@pytest.mark.parametrize("name", COPIES)
def test_too_many_missing_files_are_told_by_name(tmp_path: Path, name: str) -> None:
    build, task = COPIES[name]
    folder = build(tmp_path)
    lost = open_dataset(folder, [task]).source.paths[0]
    lost.unlink()
    with pytest.raises(DataError) as caught:
        open_dataset(folder, [task])
    assert f"{lost} (missing)" in str(caught.value)
    assert DATASET_TASKS[task].source.page in str(caught.value)


def test_a_few_broken_files_are_counted_and_named_and_the_rest_is_asked(tmp_path: Path) -> None:
    lists = {**GTZAN, "train": [f"jazz.{number:05d}" for number in range(54, 94)]}
    folder = copies.gtzan(tmp_path, lists)
    jazz = folder / "genres" / "jazz"
    (jazz / "jazz.00054.wav").write_bytes(bytes(range(256)) * 40)
    (jazz / "jazz.00055.wav").unlink()
    opened = open_dataset(folder, ["gtzan_genre"])
    assert set(opened.unusable) == {str(jazz / f"jazz.0005{n}.wav") for n in (4, 5)}
    assert opened.unusable[str(jazz / "jazz.00055.wav")] == "missing"
    assert "gtzan_genre: 38 train, 1 valid, 2 test" in opened.report()
    assert "2 files are missing or broken" in opened.report()
    assert "jazz.00054.wav (not_audio" in opened.report()
    assert len(opened.tasks[0].rows("train")) == 38


UNKNOWN = {
    "gtzan": ("test_filtered.txt", "hiphop/hiphop", "polka/polka", "'polka'"),
    "giantsteps": (
        "giantsteps-mtg-key-dataset-fd7b8c5/annotations/annotations.txt",
        "D# minor",
        "D# dorian",
        "'Eb dorian'",
    ),
    "emomusic": ("songs_info.csv", "evaluation", "rehearsal", "'rehearsal'"),
    "nsynth": ("nsynth-test/examples.json", '"pitch": 69', '"pitch": 128', "'128'"),
    "magnatagatune": ("annotations_final.csv", '"0/a_band', '"x/a_band', "x/a_band"),
    "jamendo": (
        "mtg-jamendo-dataset/data/splits/split-0/autotagging_genre-test.tsv",
        "genre---jazz",
        "jazz",
        "genre---rock",
    ),
    "vocalset": ("test_s.txt", "m3_row", "m12_row", "'m12'"),
}


@pytest.mark.parametrize("name", COPIES)
def test_an_unknown_label_names_file_and_label(tmp_path: Path, name: str) -> None:
    build, task = COPIES[name]
    folder = build(tmp_path)
    file, known, unknown, told = UNKNOWN[name]
    text = (folder / file).read_text()
    assert known in text
    (folder / file).write_text(text.replace(known, unknown))
    with pytest.raises(DataError) as caught:
        open_dataset(folder, [task])
    assert told in str(caught.value) and Path(file).name in str(caught.value)


def test_a_table_without_a_column_names_it(tmp_path: Path) -> None:
    path = an_emomusic(tmp_path) / "static_annotations.csv"
    path.write_text(path.read_text().replace("mean_valence", "valence"))
    with pytest.raises(DataError, match="lacks mean_valence"):
        emomusic.read(tmp_path)


@pytest.mark.parametrize("value", ["nan", "inf", "much"])
def test_a_value_that_is_no_finite_number_is_told(tmp_path: Path, value: str) -> None:
    path = an_emomusic(tmp_path) / "static_annotations.csv"
    cells = path.read_text().splitlines()[-1].split(",")
    path.write_text(path.read_text().replace(",".join(cells), f"{cells[0]},{value},1.0,2.0,1.2"))
    with pytest.raises(DataError, match=rf"song {cells[0]}: '{value}' is not a (finite )?number"):
        emomusic.read(tmp_path)


def test_notes_that_are_no_json_are_told(tmp_path: Path) -> None:
    (an_nsynth(tmp_path) / "nsynth-valid" / "examples.json").write_text("[1, 2")
    with pytest.raises(DataError, match="nsynth-valid/examples.json is no JSON object"):
        nsynth.read_pitch(tmp_path)


def test_a_tag_that_is_neither_0_nor_1_is_told(tmp_path: Path) -> None:
    path = a_magnatagatune(tmp_path) / "annotations_final.csv"
    path.write_text(path.read_text().replace('"0"\t"1"\t"1"', '"0"\t"1"\t"maybe"'))
    with pytest.raises(DataError, match="'rock' must be 0 or 1, but is 'maybe'"):
        magnatagatune.read(tmp_path)


def test_tags_that_cannot_be_scored_are_told_before_anything_is_encoded(tmp_path: Path) -> None:
    path = a_magnatagatune(tmp_path) / "annotations_final.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if '"d/' not in line))
    with pytest.raises(DataError, match="no tag both holds for some of test"):
        open_dataset(tmp_path, ["magnatagatune"])


def test_collaborators_of_validation_artists_are_of_the_validation_too() -> None:
    tracks = [
        ["The First Band", "Second Choir"],
        ["Second Choir", "Third Duo"],
        ["Third Duo", "Los Amigos"],
        ["Fifth Act"],
    ]
    # Two passes in this order: the second one ends a step before The First Band.
    assert giantsteps.split_artists(tracks) == {
        "The First Band": "train",
        "Second Choir": "valid",
        "Third Duo": "valid",
        "Los Amigos": "valid",
        "Fifth Act": "train",
    }


def test_recordings_are_cut_into_whole_clips_and_a_short_one_is_one_clip() -> None:
    assert cut(149.9, clip_seconds=30.0, most_seconds=math.inf) == [
        (start, 30.0) for start in (0.0, 30.0, 60.0, 90.0)
    ]
    assert cut(45.0, clip_seconds=5.0, most_seconds=30.0)[-1] == (25.0, 5.0)
    assert cut(29.987, clip_seconds=30.0, most_seconds=math.inf) == [(0.0, 29.9)]
    assert cut(4.0, clip_seconds=math.inf, most_seconds=math.inf) == [(0.0, 4.0)]


def test_a_clip_is_what_lies_at_its_place_in_the_file_at_the_rate_asked_for(tmp_path: Path) -> None:
    rate = copies.RATE
    time = np.arange(3 * rate) / rate
    tones = np.sin(2 * np.pi * np.where(time < 1.5, 300.0, 1200.0) * time)
    path = tmp_path / "two tones.flac"
    soundfile.write(path, tones, rate)
    found = survey([path], name="tones")
    assert found.seconds[path] == 3.0
    source = FileSource("tones", [path], found.stamps)
    clip = Clip("tones", 0, 1.5, 1.0)
    np.testing.assert_allclose(source.read(clip, rate), tones[24_000:40_000], atol=1e-4)
    resampled = source.read(clip, 24_000)
    assert len(resampled) == 24_000
    assert np.argmax(np.abs(np.fft.rfft(resampled))) == 1200


def test_a_file_that_breaks_behind_its_header_is_unusable_from_the_start(tmp_path: Path) -> None:
    path = copies.sound(tmp_path / "song.flac", seconds=2.0)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    path.write_bytes(data)
    found = survey([path], name="songs")
    assert found.seconds == {} and found.unusable[path].startswith("corrupt: ")


def test_a_file_that_breaks_while_it_is_probed_is_told(tmp_path: Path) -> None:
    path = copies.sound(tmp_path / "song.wav", seconds=2.0)
    source = FileSource("songs", [path], survey([path], name="songs").stamps)
    copies.sound(path, seconds=1.5)
    with pytest.raises(DataError, match=r"song\.wav was 0\.50 s longer"):
        source.read(Clip("songs", 0, 0.0, 2.0), copies.RATE)
    path.write_bytes(b"no music")
    source = FileSource("songs", [path], {path: (0, 0)})
    with pytest.raises(DataError, match=r"song\.wav could be decoded .* cannot now: not_audio"):
        source.read(Clip("songs", 0, 0.0, 2.0), copies.RATE)


def test_what_was_found_is_remembered_until_a_file_changes(tmp_path: Path) -> None:
    paths = [copies.sound(tmp_path / f"{name}.wav", seconds=2.0) for name in "abc"]
    memory = tmp_path / "cache" / "looks.json"
    first = survey(paths, name="songs", memory=memory)
    # What the memory says is believed of a file that did not change, and of no other.
    looks = json.loads(memory.read_text())
    for path in paths:
        looks[str(path)][2] = 77.0
    memory.write_text(json.dumps(looks))
    copies.sound(paths[1], seconds=3.0)
    paths[2].unlink()
    second = survey(paths, name="songs", memory=memory)
    assert second.seconds == {paths[0]: 77.0, paths[1]: 3.0}
    assert second.unusable == {paths[2]: "missing"}
    memory.write_text("[")
    third = survey(paths, name="songs", memory=memory)
    assert third.seconds == {paths[0]: first.seconds[paths[0]], paths[1]: 3.0}


def test_a_file_that_changes_has_another_identity(tmp_path: Path) -> None:
    path = copies.sound(tmp_path / "song.wav", seconds=2.0)
    before = FileSource("songs", [path], survey([path], name="songs").stamps).identity
    assert FileSource("songs", [path], survey([path], name="songs").stamps).identity == before
    copies.sound(path, seconds=3.0)
    assert FileSource("songs", [path], survey([path], name="songs").stamps).identity != before


def test_long_recordings_are_asked_clip_by_clip_and_scored_once(tmp_path: Path) -> None:
    folder = an_emomusic(tmp_path)
    copies.sound(folder / "clips_45seconds" / "2.mp3", seconds=41.0)
    copies.sound(folder / "clips_45seconds" / "5.mp3", seconds=11.0)
    (task,) = open_dataset(folder, ["emomusic"]).tasks
    heard = [(e.clip.start, e.clip.seconds) for e in task.examples if e.split == "test"]
    assert heard == [(0.0, 5.0), (5.0, 5.0)]
    assert len([e for e in task.examples if e.truth == (5.5, 3.25)]) == 6
    assert task.mean_over_track


def test_a_name_may_hold_what_python_takes_for_the_end_of_a_line(tmp_path: Path) -> None:
    folder = an_emomusic(tmp_path)
    path = folder / "songs_info.csv"
    path.write_text(path.read_text().replace("Artist Eight", "Artist\u2028 \x0bEight"))
    (task,) = open_dataset(folder, ["emomusic"]).tasks
    assert [e.split for e in task.examples] == ["train", "train", "valid", "test"]
