"""``launch/inspect.py`` as a user runs it, and that its name gets in nobody's way."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from html_page import check_stands_alone
from inspection_corpus import Clip, damage, low_passed, white, write_corpus
from training_parts import GRID, ROOT, small_quantizer

from etude.data.audio import decode
from etude.data.inspection.audio import SpectrumGrid
from etude.data.shards import Corpus
from etude.pretrain.quantizer import save_quantizer

LAUNCH = ROOT / "launch"
NO_COMMANDS = ("__init__", "cli", "run_config", "sweep_results")
COMMANDS = sorted(path.stem for path in LAUNCH.glob("*.py") if path.stem not in NO_COMMANDS)

Done = subprocess.CompletedProcess[str]


def python(*words: object, cwd: Path | None = None) -> Done:
    return subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def look(*words: object) -> Done:
    return python(LAUNCH / "inspect.py", *words)


STANDARD = """
import inspect, sys, sysconfig
assert sys.path[0] == {folder!r}, sys.path
assert sys.modules["inspect"] is inspect and inspect.__name__ == "inspect"
assert inspect.__file__.startswith(sysconfig.get_path("stdlib")), inspect.__file__
assert str(inspect.signature(lambda a, *, b=1: 0)) == "(a, *, b=1)"
"""


def test_a_script_beside_it_imports_the_standard_library_s_inspect(tmp_path: Path) -> None:
    # Alone: nothing of ours may be needed for it.
    shutil.copy(LAUNCH / "inspect.py", tmp_path)
    script = tmp_path / "script.py"
    text = STANDARD.format(folder=str(tmp_path))
    script.write_text(text + "import dataclasses, typing, asyncio, importlib; print('fine')")
    done = python("-S", script)
    assert done.stdout == "fine\n", done.stderr


def test_spawned_workers_of_a_command_import_it_too(tmp_path: Path) -> None:
    shutil.copy(LAUNCH / "inspect.py", tmp_path)
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing\n"
        "def where(_):\n"
        "    import inspect\n"
        "    return inspect.__file__, str(inspect.signature(where))\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        file, signature = pool.map(where, [0])[0]\n"
        "    import sysconfig\n"
        "    assert file.startswith(sysconfig.get_path('stdlib')), file\n"
        "    print(signature)\n"
    )
    done = python(script)
    assert done.stdout == "(_)\n", done.stderr


def help_and_inspect(command: str) -> Done:
    """``python launch/COMMAND.py --help`` from the inside: what is ``inspect`` there?"""
    path = LAUNCH / f"{command}.py"
    return python(
        "-c",
        "import runpy, sys\n"
        # As for `python launch/COMMAND.py`.
        f"sys.path[0], sys.argv = {str(LAUNCH)!r}, [{str(path)!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(path)!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n" + STANDARD.format(folder=str(LAUNCH)),
    )


def test_every_command_runs_with_the_standard_library_s_inspect() -> None:
    assert {"inspect", "train", "prepare", "embed"} <= set(COMMANDS)
    with ThreadPoolExecutor(max_workers=2) as pool:
        plain = pool.map(lambda command: python(LAUNCH / f"{command}.py", "--help"), COMMANDS)
        inside = pool.map(help_and_inspect, COMMANDS)
        for command, done, seen in zip(COMMANDS, plain, inside, strict=True):
            assert done.returncode == 0 and "usage:" in done.stdout, (command, done.stderr)
            assert seen.returncode == 0, (command, seen.stderr)


def test_as_a_module_it_is_the_command_and_torch_works_beside_it() -> None:
    done = python("-m", "etude.launch.inspect", "--help", cwd=LAUNCH)
    assert done.returncode == 0 and "usage: inspect.py" in done.stdout, done.stderr
    torch = python("-c", "import torch, inspect; print(inspect.signature(torch.add.__call__))")
    assert torch.returncode == 0, torch.stderr


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Nine clips; one low-passed, one far too quiet, one damaged, one on both sides."""
    train = [Clip(f"plain-{n}", white(3, seed=n), "plain") for n in range(4)]
    train += [
        Clip("cut", low_passed(white(3, seed=5), 4000)),
        Clip("quiet", white(3, seed=6) / 1000),
        Clip("damaged", white(2, seed=7)),
    ]
    valid = [
        Clip("again", white(3, seed=0), metadata={"artist": "<b>nobody</b>"}),
        Clip("fine", white(3, seed=9), "plain"),
    ]
    root = tmp_path_factory.mktemp("inspect") / "odd & <b>small"
    made = write_corpus(root, {"train-000000": train, "valid-000000": valid})
    damage(made, "train", 6)
    save_quantizer(small_quantizer(), root / "kmeans-tiny.safetensors", report={})
    return made


@pytest.fixture(scope="module")
def done(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[Done, Path]:
    out = tmp_path_factory.mktemp("out") / "new"
    words = (corpus.root, "--out", out / "page.html", "--json", out / "all.json")
    return look(*words, "--seconds", 600), out


def test_the_terminal_shows_figures_with_what_they_are_over(
    done: tuple[Done, Path], corpus: Corpus
) -> None:
    command, out = done
    assert command.returncode == 0, command.stderr
    lines = command.stdout.splitlines()
    assert lines[0] == (
        "Looked at 7 of 7 train clips and 2 of 2 valid clips, within 600 s of reading."
    )
    rows = [line.split() for line in lines]
    assert ["clips", "all", "clips", "7", "2"] in rows
    assert ["of", "them", "damaged", "sample", "1", "0"] in rows
    cut = ["clips", "whose", "spectrum", "is", "cut", "off", "sample", "16.67%", "0"]
    assert cut in rows and ["same", "audio", "all", "clips", "1", "of", "2", "clips"] in rows
    frames = 8 * GRID.num_frames(3 * corpus.sample_rate)
    assert ["kmeans-tiny", f"{frames:,}", "frames", "of", "8", "clips"] in [r[:6] for r in rows]
    assert "1 of the clips that were opened is damaged" in command.stdout
    assert lines[-2:] == [str(out / "all.json"), str(out / "page.html")]


def test_the_page_stands_alone_and_says_of_every_figure_what_it_is_over(
    done: tuple[Done, Path], corpus: Corpus
) -> None:
    _, out = done
    text = (out / "page.html").read_text()
    page = check_stands_alone(text)
    words = "".join(page.words)
    looked = "Looked at 7 of 7 train clips and 2 of 2 valid clips, within 600 s of reading."
    assert looked in words
    figures = text.split("<figure>")[1:]
    assert len(figures) == 7
    for figure in figures:
        caption = figure.split("<figcaption")[1].split("</figcaption>")[0]
        assert looked in caption or "All clips, by the index." in caption
    assert "Labels of 8 of these clips were counted." in figures[-1]
    table = text.split("<h2>Figures</h2>")[1].split("</table>")[0]
    for row in table.split("<tr>")[2:]:
        assert "<td>all clips</td>" in row or "<td>sample</td>" in row
    # Names of folders and tags are text.
    assert "<b>" not in text and "odd & <b>small" in words and "valid: again" in words
    assert "train-000000.tar: member damaged.flac is damaged" in words


def test_the_json_holds_the_numbers_of_the_audio(done: tuple[Done, Path], corpus: Corpus) -> None:
    _, out = done
    content = json.loads((out / "all.json").read_text())
    split, grid = corpus.split("train"), SpectrumGrid(corpus.sample_rate)
    levels, spectra = [], []
    for clip in range(6):
        samples, _ = decode(split.read_audio_bytes(clip))
        levels.append(20 * np.log10(samples.astype(np.float64).std()))
        spectra.append(10 * np.log10(grid.power(samples - samples.mean())))
    assert content["figures"]["rms"]["train"] == pytest.approx(
        np.percentile(levels, content["percent"]), abs=1e-3
    )
    quartiles = np.percentile(spectra, (25, 50, 75), axis=0)
    # Without the lowest bins, which hold the rounding of a mean that was taken away.
    assert np.allclose(np.array(content["spectrum"]["train"])[:, 8:], quartiles[:, 8:], atol=0.1)
    assert len(content["spectrum"]["hertz"]) == quartiles.shape[1]
    assert content["sample"]["train"] == {"looked_at": 7, "chosen": 7, "of": 7}
    assert [damaged["clip"] for damaged in content["damaged"]] == ["train: damaged"]
    (labels,) = content["labels"]
    assert labels["clips"] == 8 and 1 <= labels["perplexity"] <= labels["used"] <= 7


def test_looking_leaves_the_corpus_as_it_is(done: tuple[Done, Path], corpus: Corpus) -> None:
    assert sorted(path.name for path in corpus.root.iterdir()) == [
        "blocks.npy",
        "index.json",
        "kmeans-tiny.safetensors",
        "members.npy",
        "train-000000.tar",
        "valid-000000.tar",
    ]


def test_requests_that_cannot_be_met_end_with_status_2(corpus: Corpus, tmp_path: Path) -> None:
    for words, message in (
        ((tmp_path / "nowhere",), "no prepared corpus here"),
        ((corpus.root, "--sample", 0), "--sample must be at least 1"),
        ((corpus.root, "--seconds", "nan"), "--seconds above 0"),
        ((corpus.root, "--out", tmp_path), "--out must be a file"),
    ):
        refused = look(*words)
        assert refused.returncode == 2, refused.stderr
        assert refused.stderr.startswith("error: ") and message in refused.stderr


def test_a_corpus_that_cannot_be_read_ends_with_status_3(tmp_path: Path) -> None:
    alone = {"train-000000": [Clip("a", white(1)), Clip("b", white(1, seed=1))]}
    corpus = write_corpus(tmp_path / "corpus", alone)
    for clip in range(2):
        damage(corpus, "train", clip)
    nothing = look(corpus.root, "--out", tmp_path / "page.html")
    assert nothing.returncode == 3, nothing.stderr
    assert "not one of the clips that were looked at can be read" in nothing.stderr
    # What the index tells is shown all the same.
    assert "clips looked at" in nothing.stdout
    check_stands_alone((tmp_path / "page.html").read_text())

    (corpus.root / "train-000000.tar").unlink()
    missing = look(corpus.root)
    assert missing.returncode == 3 and "train-000000.tar" in missing.stderr
