import json
import re
import shutil

import pytest
from audio_files import tune, write
from prepare_parts import QUIET, SETTINGS, clips, content, edited_index

from etude.data.errors import DataError, InputError
from etude.data.index import verify
from etude.data.prepare import prepare
from etude.data.shards import open_corpus


@pytest.fixture
def music(tmp_path):
    """Four tracks of 3, 4, 5 and 6 s: two folders that share a file name, one accented name."""
    for number, name in enumerate(("a/one.flac", "b/one.flac", "b/two.flac", "Caf\u00e9.flac")):
        write(tmp_path / "in" / name, tune(3 + number, seed=number))
    return tmp_path / "in"


def table(folder, text, name="about.csv"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def rows_of(corpus):
    return {metadata["source"]: metadata.get("metadata") for _, metadata in clips(corpus)}


def test_a_row_finds_its_track_by_source_by_path_below_a_root_and_by_a_unique_name(music, tmp_path):
    about = table(
        tmp_path,
        "file,artist,year\n"
        'in/a/one.flac,Ada,2001\nb/one.flac,"Kite, Anchor",\n'
        "./two.flac,Ada,3\nCafe\u0301.flac,,4\n",
    )
    said = []
    out = tmp_path / "out"
    corpus = prepare([music], out, SETTINGS, workers=0, metadata=about, say=said.append)
    assert rows_of(corpus) == {
        "in/a/one.flac": {"artist": "Ada", "year": "2001"},
        "in/b/one.flac": {"artist": "Kite, Anchor", "year": ""},
        "in/b/two.flac": {"artist": "Ada", "year": "3"},
        "in/Caf\u00e9.flac": {"artist": "", "year": "4"},
    }
    assert any(f"4 of 4 tracks have a row in {about}" in line for line in said)


def test_values_of_jsonl_travel_as_they_are_and_labels_beside_a_file_stay(music, tmp_path):
    (music / "b" / "two.json").write_text('{"tempo": 120}', encoding="utf-8")
    row = {"file": "two.flac", "tags": ["live", 3], "bpm": 120.5, "nested": {"a": None}}
    about = table(tmp_path, json.dumps(row) + "\n\n", "about.jsonl")
    said = []
    out = tmp_path / "out"
    corpus = prepare([music], out, SETTINGS, workers=0, metadata=about, say=said.append)
    (clip,) = [metadata for _, metadata in clips(corpus) if "two" in metadata["source"]]
    del row["file"]
    assert clip["metadata"] == row and clip["labels"] == {"tempo": 120}
    assert sum(value is not None for value in rows_of(corpus).values()) == 1
    assert any("1 of 4 tracks have a row" in line for line in said)


def test_a_row_without_a_track_is_noted_by_name_and_counted(music, tmp_path):
    about = table(tmp_path, "file,a\ntwo.flac,1\nlost.flac,2\nzzz.flac,3\n")
    said = []
    out = tmp_path / "out"
    prepare([music], out, SETTINGS, workers=0, metadata=about, say=said.append)
    noted = json.loads((out / "report.json").read_bytes())["noted"]
    assert [(note["file"], note["reason"]) for note in noted] == [
        ("lost.flac", "unmatched_row"),
        ("zzz.flac", "unmatched_row"),
    ]
    assert "line 3 of about.csv" in noted[0]["detail"]
    assert any("2 rows name no track, the first is 'lost.flac'" in line for line in said)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "file,a\none.flac,1\n", r"line 2: 'one.flac' may be any of 2 tracks \(in/a/one"),
        ("a.csv", "file,a\ntwo.flac,1\nb/two.flac,2\n", r"line 3: in/b/two.flac has a row in line"),
        ("a.csv", "file,a\nno.flac,1\n", r"none of its 1 rows.*'in/Caf\u00e9.flac'.*'no.flac'"),
        ("a.csv", "name,a\ntwo.flac,1\n", r"line 1: no column is called `file`, only name, a"),
        ("a.csv", "file,a,a\ntwo.flac,1,2\n", r"line 1: every column needs a name of its own"),
        ("a.csv", "file,a\ntwo.flac\n", r"line 2: 1 cells, but 2 columns"),
        ("a.csv", "file,a\n,2\n", r"line 2: `file` is empty"),
        ("a.csv", 'file,a\ntwo.flac,"1"2\n', r"not CSV"),
        ("a.csv", "file,licence,license\ntwo.flac,a,b\n", r"line 2: both `licence` and `license`"),
        ("a.csv", "file,a\n", r"has no rows"),
        ("a.jsonl", '{"file": "two.flac"\n', r"line 1: not a line of JSON"),
        ("a.jsonl", '{"file": "two.flac", "a": NaN}\n', r"line 1: not a line of JSON"),
        ("a.jsonl", '{"file": 3}\n', r"line 1: not an object with a text called `file`"),
        ("a.jsonl", '{"file": "two.flac", "licence": 3}\n', r"line 1: `licence` must be a text"),
        ("a.txt", "file,a\ntwo.flac,1\n", r"takes a .csv or a .jsonl file"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused_by_line_before_anything_is_written(
    music, tmp_path, name, text, message
):
    about = table(tmp_path, text, name)
    with pytest.raises(InputError, match=message):
        prepare([music], tmp_path / "out", SETTINGS, metadata=about, **QUIET)
    assert not (tmp_path / "out").exists()


def test_a_table_that_is_not_utf_8_is_refused_but_a_name_on_disk_may_be_anything(music, tmp_path):
    about = tmp_path / "about.csv"
    about.write_bytes(b"file,artist\ntwo.flac,Caf\xe9\n")
    with pytest.raises(InputError, match="line 2: not UTF-8"):
        prepare([music], tmp_path / "out", SETTINGS, metadata=about, **QUIET)
    write(tmp_path / "odd.flac", tune(3, seed=7))
    shutil.move(tmp_path / "odd.flac", bytes(music) + b"/\xe9.flac")
    about.write_bytes(b"file,artist\n\xe9.flac,Ada\n")
    corpus = prepare([music], tmp_path / "out", SETTINGS, metadata=about, **QUIET)
    named = {name for name, row in rows_of(corpus).items() if row}
    assert named == {"in/\udce9.flac"}


def test_seconds_per_licence_are_those_of_the_packed_clips(music, tmp_path):
    about = table(
        tmp_path, "file,license\na/one.flac,CC0\nb/one.flac,CC BY 4.0\ntwo.flac, CC0\nno.flac,X\n"
    )
    said = []
    out = tmp_path / "out"
    corpus = prepare([music], out, SETTINGS, workers=0, metadata=about, say=said.append)
    assert corpus.licences == {"CC BY 4.0": 4.0, "CC0": 3.0 + 5.0, "unknown": 6.0}
    assert json.loads((out / "index.json").read_bytes())["licences"] == corpus.licences
    assert sum(corpus.licences.values()) == corpus.seconds("train") + corpus.seconds("valid")
    assert rows_of(corpus)["in/b/two.flac"] == {"licence": " CC0"}
    assert re.search(r"licences\n +0.1 min  CC0\n", said[-1])
    verify(out)


def test_without_any_licence_the_index_has_none(music, tmp_path):
    about = table(tmp_path, "file,licence\ntwo.flac,\n")
    corpus = prepare([music], tmp_path / "out", SETTINGS, metadata=about, **QUIET)
    assert corpus.licences == {}
    assert "licences" not in json.loads((tmp_path / "out" / "index.json").read_bytes())


@pytest.mark.parametrize(
    "value", [[], {"CC0": "1"}, {"CC0": -1}, {"CC0": float("nan")}, {"CC0": None}, {"CC0": True}]
)
def test_a_bad_value_of_licences_is_an_index_that_we_do_not_write(music, tmp_path, value):
    corpus = prepare([music], tmp_path / "out", SETTINGS, **QUIET)
    with pytest.raises(DataError, match="not an index that launch/prepare.py writes"):
        edited_index(corpus, licences=value)


def test_verify_compares_the_licences_with_the_clips(music, tmp_path):
    about = table(tmp_path, "file,licence\ntwo.flac,CC0\n")
    corpus = prepare([music], tmp_path / "out", SETTINGS, metadata=about, **QUIET)
    verify(edited_index(corpus, licences={"CC0": 5.0, "unknown": 13.0}).root)
    edited_index(corpus, licences={"CC0": 18.0})
    with pytest.raises(DataError, match="seconds per licence"):
        verify(corpus.root)


def test_another_table_is_refused_by_a_finished_corpus_and_starts_an_unfinished_one_over(
    music, tmp_path
):
    out = tmp_path / "out"
    first = table(tmp_path, "file,a\ntwo.flac,1\nlost.flac,2\n", "first.csv")
    same = table(tmp_path, "file,a\nother.flac,2\nb/two.flac,1\n", "same.csv")
    other = table(tmp_path, "file,a\ntwo.flac,2\n", "other.csv")
    prepare([music], out, SETTINGS, metadata=first, **QUIET)
    said = []
    prepare([music], out, SETTINGS, workers=0, metadata=same, say=said.append)
    assert "nothing to do" in said[0]
    for about, message in ((other, "the rows of --metadata changed"), (None, "now there is none")):
        with pytest.raises(InputError, match=message):
            prepare([music], out, SETTINGS, metadata=about, **QUIET)
    (out / "index.json").unlink()
    corpus = prepare([music], out, SETTINGS, workers=0, metadata=other, say=said.append)
    assert "starting over" in said[1]
    assert rows_of(corpus)["in/b/two.flac"] == {"a": "2"}
    prepare([music], tmp_path / "fresh", SETTINGS, metadata=other, **QUIET)
    assert content(out) == content(tmp_path / "fresh")


def test_a_corpus_of_an_older_version_is_complete_but_an_unfinished_one_starts_over(
    music, tmp_path
):
    out = tmp_path / "out"
    prepare([music], out, SETTINGS, **QUIET)
    beginning = json.loads((out / ".prepare.json").read_bytes())
    del beginning["settings"]["group_by"]
    (out / ".prepare.json").write_text(json.dumps(beginning), encoding="utf-8")
    said = []
    prepare([music], out, SETTINGS, workers=0, say=said.append)
    assert "nothing to do" in said[0]
    (out / "index.json").unlink()
    prepare([music], out, SETTINGS, workers=0, say=said.append)
    assert "an older version" in said[1] and "starting over" in said[1]
    assert open_corpus(out).seconds("train") > 0
