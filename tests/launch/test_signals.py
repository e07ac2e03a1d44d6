"""The campaign tests/campaigns/signals.py in short, and what it brought to light.

What SIGTERM does while a run trains is in test_train.py, under every launcher.
"""

import multiprocessing
import os
import signal
import threading
import time
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest
import torch
from campaigns.launched import Launched
from campaigns.signals import ENDS_WITHIN, Case, finish, interrupt, refer
from campaigns.tiny_runs import make_corpus, write_recipe

from etude.data.pipeline import training_batches
from etude.data.plan import BatchShare, CropPlan
from etude.data.shards import Corpus


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signals")
    return write_recipe(
        folder, "mert", make_corpus(folder, clip_seconds=2.0, held_out=0.5), dropout=0.1
    )


def test_a_run_that_is_signalled_again_and_again_ends_as_one_that_was_left_alone(
    recipe: Path,
) -> None:
    reference = refer(recipe, 1)
    run = recipe.with_name("interrupted")

    def case(**what: object) -> Case:
        same = {
            "launcher": "python",
            "paradigm": "mert",
            "rank": 0,
            "since": "ranks",
            "again": None,
        }
        return Case(**{**same, **what})  # type: ignore[arg-type]

    cases = [
        # The second one while the interpreter answers the first.
        case(phase="start-up", step=0, share=0.4, target="group", number=signal.SIGTERM, again=0.1),
        case(phase="validation", step=5, share=0.2, target="rank", number=signal.SIGUSR1),
        case(phase="saving", step=12, share=0.1, target="group", number=signal.SIGINT, again=0.02),
    ]
    outcomes = [interrupt(each, recipe, run, reference) for each in cases]
    assert [outcome.mistakes for outcome in outcomes] == [[], [], []]
    assert finish("python", recipe, run, reference) == []


def test_a_rank_whose_launcher_died_before_it_could_look_for_it_ends_too(recipe: Path) -> None:
    # It would wait for the launcher's store until the watchdog's ten minutes are over, or train on.
    launched = Launched("torchrun 1", recipe, recipe.with_name("orphan"))
    launched.wait(launched.is_complete)
    launched.command.send_signal(signal.SIGUSR1)  # torchrun does not catch it
    _, seconds = launched.end(ENDS_WITHIN)
    assert launched.command.returncode == -signal.SIGUSR1
    assert seconds < ENDS_WITHIN and launched.said.startswith("error: interrupted")


def test_a_deepspeed_command_that_dies_before_there_are_ranks_takes_them_with_it(
    recipe: Path,
) -> None:
    # They never see the command, only what it has begun.
    launched = Launched("deepspeed 2", recipe, recipe.with_name("unseen"))
    launched.wait(lambda: launched.runs("deepspeed.launcher.launch"))
    launched.command.terminate()
    _, seconds = launched.end(ENDS_WITHIN)
    assert launched.command.returncode == -signal.SIGTERM
    assert seconds < ENDS_WITHIN and launched.updates == 0
    assert "error: interrupted" in launched.said


def test_a_loader_worker_that_is_signalled_while_it_is_born_lives_on(
    small_corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A signal to the whole group: the trainer answers it, and needs its workers until it has saved.
    set_num_threads = torch.set_num_threads

    def slowly(count: int) -> None:
        if multiprocessing.parent_process() is not None:
            time.sleep(1)  # torch's own handlers are in place, and ours are not yet
        set_num_threads(count)

    def strike() -> None:
        while not (workers := multiprocessing.active_children()):
            time.sleep(0.01)
        time.sleep(0.5)
        os.kill(workers[0].pid or 0, signal.SIGTERM)

    monkeypatch.setattr(torch, "set_num_threads", slowly)
    share = BatchShare(global_batch=2, micro_batch=2, rank=0, ranks=1)
    plan = CropPlan(small_corpus.split("train"), crop_samples=24_000, hop_samples=320, seed=0)
    thread = threading.Thread(target=strike)
    thread.start()
    with closing(
        training_batches(plan, share, first_update=0, workers=1, pin_memory=False)  # type: ignore[type-var]
    ) as batches:
        assert len(list(islice(batches, 3))) == 3
    thread.join()
