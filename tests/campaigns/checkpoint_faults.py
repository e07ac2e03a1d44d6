"""Saving is killed, or its disk is full or fails, at every operation on files; and bits flip.

    python tests/campaigns/checkpoint_faults.py [--flips 2000] [--seed S]

Each case is a process of its own, forked where a save is about to begin, which dies of SIGKILL or
gets ENOSPC or EIO at its k-th operation: opening a file for writing, making, renaming or removing
something, fsync. Afterwards the newest valid checkpoint must be the one before or, if publishing
had succeeded, the new one; a disk that failed must have ended in a StorageError or a whole
checkpoint; and the next save must work. Then single bits flip anywhere in a checkpoint, and every
one must be noticed.
"""

import argparse
import errno
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from etude.models.config import EncoderConfig
from etude.models.encoder import Encoder
from etude.pretrain.checkpoint import Checkpoints, find_damage
from etude.pretrain.config_file import load_config
from etude.pretrain.distributed import World
from etude.pretrain.engine_ddp import DdpEngine
from etude.pretrain.errors import StorageError

ROOT = Path(__file__).parents[2]
ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
TINY = {
    "conv_dims": (16,) * 7,
    "dim": 16,
    "ffn_dim": 32,
    "heads": 2,
    "layers": 1,
    "position_kernel": 8,
    "position_groups": 2,
}

Fault = Literal["killed", "disk full", "I/O error"]
FAULTS: tuple[Fault, ...] = ("killed", "disk full", "I/O error")
_ERRNO = {"disk full": errno.ENOSPC, "I/O error": errno.EIO}
_AUDITED = {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Saver:
    """A tiny encoder with its optimizer, and checkpoints in a folder."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.encoder = Encoder(EncoderConfig.model_validate(TINY))
        config = load_config(ROOT / "configs" / "quickstart.yaml")
        self.engine = DdpEngine(self.encoder, config, ALONE, micro_batches=1)
        self.folder = folder

    def checkpoints(self, folder: Path) -> Checkpoints:
        return Checkpoints(folder, keep=2, world=ALONE)

    def save(self, folder: Path, step: int) -> Path:
        return self.checkpoints(folder).save(
            step, engine=self.engine, encoder=self.encoder, state={"corpus": "abc"}
        )


@dataclass(frozen=True)
class Situation:
    """What is there when a save begins."""

    name: str
    before: tuple[int, ...]
    """Steps that were saved."""
    step: int
    """The step that is being saved."""
    damaged: bool = False
    """Whether a damaged checkpoint of that step is there."""


SITUATIONS = (
    Situation("the first save", (), 10),
    Situation("the second save", (10,), 20),
    Situation("a save after which an old one goes", (10, 20), 30),
    Situation("a save in place of a damaged one", (10, 20), 20, damaged=True),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--flips", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # that checkpoints are damaged is no news here
    mistakes = []
    with tempfile.TemporaryDirectory() as folder:
        saver = Saver(Path(folder))
        for situation in SITUATIONS:
            for fault in FAULTS:
                points, wrong = crash_everywhere(saver, situation, fault)
                mistakes += wrong
                print(f"{situation.name}, {fault}: {points} points, {len(wrong)} mistakes")
        missed = flip_bits(saver, options.flips, options.seed)
        mistakes += missed
        print(f"{options.flips} flipped bits, {len(missed)} not noticed")
    for mistake in mistakes:
        print(mistake)
    return 1 if mistakes else 0


def crash_everywhere(saver: Saver, situation: Situation, fault: Fault) -> tuple[int, list[str]]:
    """Number of points at which a save was disturbed, and what went wrong then."""
    base = saver.folder / "base"
    shutil.rmtree(base, ignore_errors=True)
    for step in situation.before:
        saver.save(base, step)
    if situation.damaged:
        flip(base / f"step-{situation.step:08d}" / "encoder.safetensors", 1000)
    mistakes, point = [], 0
    while True:
        case = saver.folder / "case"
        shutil.rmtree(case, ignore_errors=True)
        if base.exists():
            shutil.copytree(base, case)
        status = in_child(partial(saver.save, case, situation.step), case, point, fault)
        if status == "undisturbed":
            return point, mistakes
        problem = judge(saver, situation, case, status)
        if problem:
            mistakes.append(f"{situation.name}, {fault} at operation {point}: {problem}")
        point += 1


def judge(saver: Saver, situation: Situation, case: Path, status: str) -> str | None:
    """What is wrong with what a disturbed save left behind."""
    allowed = {step for step in situation.before if not (situation.damaged and step == 20)}
    if status not in ("killed", "StorageError", "saved"):
        return f"the save ended in {status}"
    found = saver.checkpoints(case).newest_valid()
    newest = 0 if found is None else int(found[1]["step"])
    expected = {situation.step} if status == "saved" else {max(allowed, default=0), situation.step}
    if newest not in expected:
        return f"after it ({status}) the newest valid checkpoint is {newest}, not {expected}"
    following = saver.save(case, 40)
    after = saver.checkpoints(case).newest_valid()
    if after is None or after[0] != following:
        return "the next save did not become the newest valid checkpoint"
    if drafts := sorted(path.name for path in case.glob("*.tmp")):
        # One of another step stays until that step is saved again.
        return None if drafts == [f"step-{situation.step:08d}.tmp"] else f"drafts stay: {drafts}"
    return None


def in_child(action: Callable[[], object], folder: Path, point: int, fault: Fault) -> str:
    """Runs a save in a fork that is disturbed at its ``point``-th operation in ``folder``."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        disturbed = Disturbance(folder, point, fault)
        try:
            disturbed.begin()
            action()
            said = "saved" if disturbed.happened else "undisturbed"
        except StorageError:
            said = "StorageError"
        except BaseException as error:  # noqa: BLE001 - whatever it is, the parent has to know
            said = repr(error)
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return "killed" if os.WIFSIGNALED(status) else said


class Disturbance:
    """Counts operations on files of a folder, and disturbs one of them."""

    def __init__(self, folder: Path, point: int, fault: Fault) -> None:
        self.happened = False
        self._folder = str(folder)
        self._left = point
        self._fault = fault

    def begin(self) -> None:
        sync = os.fsync

        def fsync(descriptor: int) -> None:
            self._operation()
            sync(descriptor)

        os.fsync = fsync  # the one operation that Python does not audit
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, str) and path.startswith(self._folder) and int(flags) & _WRITES:  # type: ignore[call-overload]
                self._operation()
        elif event in _AUDITED:
            self._operation()

    def _operation(self) -> None:
        self._left -= 1
        if self._left != -1:
            return
        self.happened = True
        if self._fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        number = _ERRNO[self._fault]
        raise OSError(number, os.strerror(number))


def flip_bits(saver: Saver, count: int, seed: int) -> list[str]:
    """Flipped bits that were not noticed."""
    folder = saver.folder / "flips"
    before, newest = saver.save(folder, 10), saver.save(folder, 20)
    missed = []
    for path, bit in places(newest, count, seed):
        flip(path, bit)
        found = saver.checkpoints(folder).newest_valid()
        if find_damage(newest) is None or found is None or found[0] != before:
            missed.append(f"bit {bit} of {path.relative_to(newest)} was not noticed")
        flip(path, bit)
    assert find_damage(newest) is None
    return missed


def places(checkpoint: Path, count: int, seed: int) -> Iterator[tuple[Path, int]]:
    """Random bits: half anywhere in all bytes, half in a file drawn first, for the small ones."""
    generator = random.Random(seed)
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    sizes = [path.stat().st_size for path in files]
    for number in range(count):
        path = generator.choice(files) if number % 2 else generator.choices(files, sizes)[0]
        yield path, generator.randrange(8 * path.stat().st_size)


def flip(path: Path, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0] ^ (1 << bit % 8)
        file.seek(bit // 8)
        file.write(bytes([byte]))


if __name__ == "__main__":
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "0")
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    torch.set_num_threads(1)  # forks
    sys.exit(main())
