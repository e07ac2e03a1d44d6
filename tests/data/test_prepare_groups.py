import importlib
import json

import numpy as np
import pytest
from audio_files import RATE, tune, write
from prepare_parts import QUIET, SETTINGS, clips, collection, content, split_of, tagged

from etude.data.audio import pyav_installed
from etude.data.errors import InputError
from etude.data.groups import group_of
from etude.data.prepare import prepare
from etude.data.prepare_settings import PrepareSettings
from etude.data.prepare_splits import Group, assign_splits
from etude.data.prepare_track import Clip, Track
from etude.data.sources import Source

ARTISTS = ("Ada Quill", "Kite & Anchor", "The Paper Lanterns", "Caf\u00e9 Nuit")
KINDS = (".flac", ".wav", ".ogg", ".mp3", ".opus", ".aiff")


def settings(seed=0, group_by="artist", valid_fraction=0.25):
    return PrepareSettings(
        clip_seconds=4, min_seconds=2, valid_fraction=valid_fraction, seed=seed, group_by=group_by
    )


def by_artist(folder):
    """Three tracks of each artist, of all kinds of file; {source: artist}."""
    artists = {}
    for number in range(12):
        name = f"{number:02d}{'.flac' if number % 3 else KINDS[number // 3]}"
        artist = ARTISTS[number % 4]
        tagged(folder / name, 3 + number % 3, seed=number, artist=artist)
        artists[f"in/{name}"] = artist
    return artists


def test_no_artist_is_in_both_splits(tmp_path):
    artists = by_artist(tmp_path / "in")
    held_out = set()
    for seed in range(4):
        said = []
        corpus = prepare(
            [tmp_path / "in"], tmp_path / str(seed), settings(seed), workers=0, say=said.append
        )
        splits = split_of(corpus)
        of = {
            split: {artists[name] for name, its in splits.items() if its == split}
            for split in ("train", "valid")
        }
        assert len(splits) == 12 and of["valid"] and of["train"]
        assert not of["train"] & of["valid"]
        held_out |= of["valid"]
        assert "by artist: 12 tracks in 4 groups; 1 of 4 held out" in said[-1]
    assert len(held_out) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_artist_is_read_from_the_tags_of_this_kind_of_file(tmp_path, kind):
    tagged(tmp_path / "in" / f"a{kind}", 3, seed=1, artist="Ada Quill")
    tagged(tmp_path / "in" / f"b{kind}", 3, seed=2, artist=" ADA  quill ")
    write(tmp_path / "in" / "c.flac", tune(3, seed=3))
    corpus = prepare([tmp_path / "in"], tmp_path / "out", settings(), **QUIET)
    splits = split_of(corpus)
    assert splits[f"in/a{kind}"] == splits[f"in/b{kind}"] != splits["in/c.flac"]
    tags = {metadata["source"]: metadata.get("artist") for _, metadata in clips(corpus)}
    assert tags[f"in/a{kind}"] == "Ada Quill" and tags["in/c.flac"] is None


@pytest.mark.skipif(not pyav_installed(), reason="m4a needs PyAV")
def test_the_artist_is_read_from_the_tags_of_m4a(tmp_path):
    av = importlib.import_module("av")
    (tmp_path / "in").mkdir()
    for number in range(2):
        with av.open(str(tmp_path / "in" / f"{number}.m4a"), "w") as container:
            container.metadata["artist"] = "Ada"
            stream = container.add_stream("aac", rate=RATE, layout="mono")
            frame = av.AudioFrame.from_ndarray(
                tune(3, seed=number)[None], format="fltp", layout="mono"
            )
            frame.sample_rate = RATE
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    write(tmp_path / "in" / "c.flac", tune(3, seed=3))
    corpus = prepare([tmp_path / "in"], tmp_path / "out", settings(), **QUIET)
    splits = split_of(corpus)
    assert splits["in/0.m4a"] == splits["in/1.m4a"] != splits["in/c.flac"]


def test_a_row_of_metadata_goes_before_the_tag_and_the_tag_fills_an_empty_cell(tmp_path):
    folder = tmp_path / "in"
    tagged(folder / "a.flac", 3, seed=1, artist="X")
    tagged(folder / "b.flac", 3, seed=2, artist="Y")
    tagged(folder / "c.flac", 3, seed=3, artist="X")
    tagged(folder / "d.flac", 3, seed=4, artist="Y")
    about = tmp_path / "about.csv"
    about.write_text("file,artist\na.flac,Y\nb.flac,\nc.flac,X\n", encoding="utf-8")
    for seed in range(3):
        corpus = prepare([folder], tmp_path / str(seed), settings(seed), metadata=about, **QUIET)
        splits = split_of(corpus)
        assert splits["in/a.flac"] == splits["in/b.flac"] == splits["in/d.flac"]
        assert splits["in/c.flac"] != splits["in/a.flac"]


def test_any_column_of_metadata_can_say_what_is_held_out_together(tmp_path):
    for number in range(6):
        tagged(tmp_path / "in" / f"{number}.flac", 3, seed=number, artist="one", album="one")
    about = tmp_path / "about.jsonl"
    rows = [{"file": f"{number}.flac", "studio": number % 2} for number in range(6)]
    about.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    corpus = prepare(
        [tmp_path / "in"], tmp_path / "out", settings(group_by="studio"), metadata=about, **QUIET
    )
    splits = split_of(corpus)
    assert len({splits[f"in/{n}.flac"] for n in (0, 2, 4)}) == 1
    assert len({splits[f"in/{n}.flac"] for n in (1, 3, 5)}) == 1
    assert splits["in/0.flac"] != splits["in/1.flac"]
    with pytest.raises(InputError, match="--group-by must be one of album, artist, none, studio"):
        prepare(
            [tmp_path / "in"], tmp_path / "b", settings(group_by="label"), metadata=about, **QUIET
        )
    with pytest.raises(InputError, match="--group-by must be one of album, artist, none, but"):
        prepare([tmp_path / "in"], tmp_path / "b", settings(group_by="studio"), **QUIET)


def test_one_artist_alone_gives_no_valid_split_and_the_summary_says_how_to_get_one(tmp_path):
    for number in range(4):
        tagged(tmp_path / "in" / f"{number}.flac", 3, seed=number, artist="Ada")
    said = []
    corpus = prepare([tmp_path / "in"], tmp_path / "a", settings(), workers=0, say=said.append)
    assert corpus.seconds("valid") == 0 and "--group-by none" in said[-1]
    by_track = prepare([tmp_path / "in"], tmp_path / "b", settings(group_by="none"), **QUIET)
    assert by_track.seconds("valid") > 0


def test_without_tags_the_corpus_is_that_of_a_split_by_track(tmp_path):
    collection(tmp_path / "in")
    prepare([tmp_path / "in"], tmp_path / "a", SETTINGS, **QUIET)
    by_track = PrepareSettings(clip_seconds=4, min_seconds=2, shard_mb=0.5, group_by="none")
    prepare([tmp_path / "in"], tmp_path / "b", by_track, **QUIET)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def track(name, samples, group=""):
    clip = Clip(f"{name}-00000", 1, 1, samples)
    return Track(name, name, None, (), (clip,), name, group)


def held_out(groups, fraction, seed, limit=10**12):
    splits = assign_splits(groups, valid_fraction=fraction, valid_samples_limit=limit, seed=seed)
    return [group for group in groups if splits[group.tracks[0].id] == "valid"]


@pytest.mark.parametrize("seed", range(20))
def test_at_least_one_group_is_held_out_never_all_and_close_to_the_fraction(seed):
    random = np.random.default_rng(seed)
    groups = []
    for number in range(int(random.integers(2, 40))):
        count = int(random.geometric(0.3))
        tracks = [track(f"{number}-{n}", int(random.integers(50, 400))) for n in range(count)]
        groups.append(Group(f"artist {number}", False, tuple(tracks)))
    total = sum(group.num_samples for group in groups)
    largest = max(group.num_samples for group in groups)
    smallest = min(group.num_samples for group in groups)
    for fraction in (0.01, 0.1, 0.3, 0.6, 0.99):
        chosen = held_out(groups, fraction, seed)
        taken = sum(group.num_samples for group in chosen)
        assert 0 < len(chosen) < len(groups)
        if fraction < 0.9:  # what has to stay in train may be larger than the rest allows
            assert abs(taken - fraction * total) <= max(largest / 2, smallest)
    assert held_out(groups, 0, seed) == []
    limited = held_out(groups, 0.6, seed, limit=1)
    assert [group.num_samples for group in limited] == [smallest]


def test_a_group_that_is_most_of_the_corpus_is_passed_over():
    large = Group("various", False, tuple(track(f"v{n}", 100) for n in range(60)))
    small = [Group(f"s{n}", False, (track(f"s{n}", 100),)) for n in range(40)]
    for seed in range(20):
        chosen = held_out([large, *small], 0.1, seed)
        assert large not in chosen and len(chosen) == 10


def test_values_that_differ_in_case_space_or_unicode_form_are_one_group(tmp_path):
    source = Source(tmp_path / "a", "a", 1, 1, None)
    spellings = ("Caf\u00e9 Nuit", "cafe\u0301  nuit ", "CAF\u00c9\tNUIT")
    assert len({group_of(source, "artist", spelling) for spelling in spellings}) == 1
    assert group_of(source, "artist", None) == ""
