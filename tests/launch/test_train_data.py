"""``launch/train.py`` on several corpora, on one at a URL, and through webdataset's own reader."""

from functools import partial
from pathlib import Path

import pytest
import yaml
from audio_files import tune, write
from run_parts import PYTHON, TORCHRUN, Run, run_stages, together, train, without_times
from training_parts import SMALL

from etude.data.prepare import PrepareSettings, prepare
from etude.data.shards import Corpus

CQT = {"kind": "cqt", "bins": 24, "bins_per_octave": 12, "fmin": 220.0, "scale": "log"}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A smaller corpus with a folder name of its own."""
    folder = tmp_path_factory.mktemp("other")
    for number in range(3):
        write(folder / "music" / f"tune {number}.flac", tune(8, seed=20 + number))
    settings = PrepareSettings(clip_seconds=4, min_seconds=3, shard_mb=1, valid_fraction=0.3)
    return prepare([folder / "music"], folder / "second", settings, workers=0)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest run there is; the corpus is for overrides to give."""
    folder = tmp_path_factory.mktemp("train")
    values = {
        "run": {"dir": str(folder / "unused")},
        "seed": 3,
        "data": {"corpus": "none", "crop_seconds": 1.0, "workers": 0},
        "model": SMALL,
        "objective": {"targets": {"cqt": CQT}},
        "train": {"max_steps": 4, "global_batch": 4, "micro_batch": 2, "precision": "fp32"},
        "optim": {"lr": 1e-3, "warmup_steps": 2, "schedule_steps": 20},
        "logging": {"every_steps": 1, "valid_every_steps": 4, "tensorboard": False},
        "health": {"every_steps": 0},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def runs(recipe: Path, small_corpus: Corpus, other: Corpus) -> dict[str, Run]:
    run = partial(run_stages, recipe)
    both = (
        f"data.corpus=[{{corpus: {small_corpus.root}, weight: 3}}, {{corpus: {other.root}}}]",
        "data.weighting=probability",
    )
    blocks = "data.block_shards=2"
    one, url = f"data.corpus={small_corpus.root}", f"data.corpus=file://{small_corpus.root}"
    cache = f"data.cache={recipe.parent / 'cache'}"
    made = together(
        partial(run, "both", (PYTHON, 4), words=both),
        partial(run, "both, two ranks", (TORCHRUN, 2), (PYTHON, 4), words=both),
        partial(run, "folder", (PYTHON, 4), words=(one, blocks)),
        partial(run, "url", (PYTHON, 4), words=(url, cache, blocks)),
        partial(run, "stock", (PYTHON, 4), words=(one, "data.reader=webdataset")),
    )
    return {run.folder.name: run for run in made}


def test_all_of_them_train(runs: dict[str, Run]) -> None:
    for run in runs.values():
        assert [done.returncode for done in run.done] == [0] * len(run.done), run.done[-1].stderr
        assert run.metrics[-1]["step"] == 4 and run.metrics[-1]["valid/loss"] > 0


def test_epochs_of_each_corpus_are_told(runs: dict[str, Run], small_corpus: Corpus) -> None:
    clips = len(small_corpus.split("train"))
    first, second = (
        [line[f"data/{name}/epochs"] for line in runs["both"].metrics]
        for name in (small_corpus.root.name, "second")
    )
    # Of 16 crops, each belongs to one of them; three in four to the first, in the mean.
    assert first[-1] > second[-1] > 0 or first[-1] * clips > 8
    assert first == sorted(first) and second == sorted(second)
    alone = [line["data/epochs"] for line in runs["folder"].metrics]
    assert alone == pytest.approx([4 * step / clips for step in range(1, 5)])


def test_a_mixture_goes_on_where_it_was_with_another_number_of_ranks(runs: dict[str, Run]) -> None:
    straight, resumed = (without_times(runs[name].metrics) for name in ("both", "both, two ranks"))
    assert [line["step"] for line in resumed] == [1, 2, 3, 4]
    for one, two in zip(straight, resumed, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert {k: v for k, v in one.items() if "epochs" in k} == {
            k: v for k, v in two.items() if "epochs" in k
        }


def test_a_url_trains_as_the_folder_does(runs: dict[str, Run]) -> None:
    assert without_times(runs["url"].metrics) == without_times(runs["folder"].metrics)


def test_the_corpora_of_a_mixture_are_told_before_training(
    recipe: Path, small_corpus: Corpus, other: Corpus
) -> None:
    both = f"data.corpus=[{{corpus: {small_corpus.root}}}, {{corpus: {other.root}}}]"
    done = train(recipe, both, f"run.dir={recipe.parent / 'dry'}", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert f"{small_corpus.root}, 24000 Hz" in done.stdout and f"{other.root}, " in done.stdout
    assert "epochs of second" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.corpus=[{corpus: /nowhere}]"], "/nowhere: no prepared corpus here"),
        (["data.corpus=file:///nowhere"], "file:///nowhere/index.json: cannot be read"),
        (["data.corpus=pipe:touch RAN"], "no command is run"),
        (
            ["data.corpus=s3://a/b", "data.reader=webdataset"],
            "data.reader: webdataset reads one corpus, in a folder",
        ),
    ],
)
def test_what_cannot_be_opened_is_a_usage_error(
    recipe: Path, words: list[str], message: str
) -> None:
    ran = recipe.parent / "ran"
    words = [word.replace("RAN", str(ran)) for word in words]
    done = train(recipe, f"run.dir={recipe.parent / 'refused'}", *words)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert not ran.exists()
    assert not (recipe.parent / "refused").exists()
