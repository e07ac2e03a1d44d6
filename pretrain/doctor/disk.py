"""Whether a run's folder can take what a run writes, and where temporary files go."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from etude.pretrain.checkpoint import published
from etude.pretrain.compile_locks import describe_locks, extensions_folder, stale_locks
from etude.pretrain.doctor.mounts import Mount, mount_of, nearest_folder
from etude.pretrain.doctor.rows import Row, failed, ok, unchecked, warning

_TEST_MB = 64
_TEST_SECONDS = 3.0
_SLOW_SAVE_SECONDS = 300.0
"""A checkpoint that takes longer is told: more than a node's warning of a shutdown."""
_FEW_FILES = 10_000
_TEMPORARY_GB = 1.0


def checkpoint_bytes(objective: nn.Module, encoder: nn.Module, *, partitioned: bool) -> int:
    """What one checkpoint takes: the encoder for use, and the engine's state to continue.

    :param partitioned: whether DeepSpeed partitions the optimizer, and keeps its own copy of what
        is trained.
    """
    kept = _bytes(objective)
    trained = sum(p.numel() * 4 for p in objective.parameters() if p.requires_grad)
    return kept + _bytes(encoder) + (3 if partitioned else 2) * trained


def _bytes(module: nn.Module) -> int:
    return sum(int(tensor.nbytes) for tensor in module.state_dict().values())


def check_space(run: Path, *, each: int, keep: int) -> Row:
    """Free space against the checkpoints that a run keeps, and the one being written beside them.

    :param each: bytes of a checkpoint.
    """
    folder = nearest_folder(run)
    mount = mount_of(folder)
    usage = os.statvfs(folder)
    free = usage.f_bavail * usage.f_frsize
    there = min(keep, len(published(run / "checkpoints")))
    row = judge_space(free, each=each, keep=keep, there=there, place=_describe(folder, mount))
    if row.mark == "ok" and mount.kind in ("tmpfs", "ramfs"):
        return warning("run.dir space", row.found, "run.dir is in memory: choose one on a disk")
    return row


def judge_space(free: int, *, each: int, keep: int, there: int, place: str) -> Row:
    """The arithmetic of :func:`check_space`; ``there`` checkpoints exist already."""
    need = (keep + 1 - there) * each
    found = (
        f"{free / 1e9:.1f} GB free on {place}; checkpoint.keep + 1 = {keep + 1} checkpoints of "
        f"{each / 1e9:.2f} GB need {need / 1e9:.2f} GB"
    ) + (f" more ({there} are there)" if there else "")
    if free < need:
        return failed("run.dir space", found, "make room, lower checkpoint.keep, move run.dir")
    if free < 2 * need:
        return warning("run.dir space", found, "logs and other jobs write there too: make room")
    return ok("run.dir space", found)


def check_inodes(run: Path) -> Row:
    """How many files the file system still takes; some do not count them."""
    folder = nearest_folder(run)
    usage = os.statvfs(folder)
    if not usage.f_files:
        return unchecked("run.dir files", f"the file system of {folder} does not count files")
    found = f"room for {usage.f_favail:,} more files"
    if usage.f_favail < _FEW_FILES:
        return warning("run.dir files", found, "delete files, or move run.dir")
    return ok("run.dir files", found)


def check_writing(run: Path, *, each: int | None) -> Row:
    """Writes, syncs and renames a file where a run would, and takes it away again.

    :param each: bytes of a checkpoint, if they are known.
    """
    folder = nearest_folder(run)
    block = os.urandom(1 << 20)
    draft = folder / f".doctor-{os.urandom(6).hex()}.part"
    final = draft.with_suffix("")
    written, start = 0, time.perf_counter()
    try:
        try:
            with draft.open("xb") as file:
                while written < _TEST_MB and time.perf_counter() - start < _TEST_SECONDS:
                    written += file.write(block) >> 20
                file.flush()
                os.fsync(file.fileno())
            draft.rename(final)
        finally:
            draft.unlink(missing_ok=True)
            final.unlink(missing_ok=True)
    except OSError as error:
        return failed(
            "run.dir writing",
            f"{folder}: {error.strerror or error}",
            "a run could not save there: choose another run.dir, or mend the disk",
        )
    speed = written * (1 << 20) / (time.perf_counter() - start)
    return judge_speed(speed, each=each, place=_describe(folder, mount_of(folder)))


def judge_speed(speed: float, *, each: int | None, place: str) -> Row:
    """The arithmetic of :func:`check_writing`; ``speed`` in bytes per second."""
    found = f"write, fsync and rename work on {place}, {speed / 1e6:,.0f} MB/s"
    if each is None:
        return ok("run.dir writing", found)
    found += f": a checkpoint takes about {each / speed:.1f} s"
    if each / speed > _SLOW_SAVE_SECONDS:
        return warning(
            "run.dir writing", found, "move run.dir to a faster disk, or save less often"
        )
    return ok("run.dir writing", found)


@contextmanager
def shown(run: Path | None) -> Iterator[Path | None]:
    """An empty file where a run would write, for others to see; none without a folder."""
    if run is None:
        yield None
        return
    path = nearest_folder(run) / f".doctor-{os.urandom(6).hex()}.seen"
    try:
        path.touch()
        yield path
    finally:
        path.unlink(missing_ok=True)


def check_temporary() -> Row:
    """Whether TMPDIR takes files; compilers and loader processes write there."""
    try:
        folder = Path(tempfile.gettempdir())
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x" * 4096)
            file.flush()
    except OSError as error:
        return failed("TMPDIR", str(error), "set TMPDIR to a folder on this node's own disk")
    mount, usage = mount_of(folder), os.statvfs(folder)
    free = usage.f_bavail * usage.f_frsize / 1e9
    found = f"{free:.1f} GB free on {_describe(folder, mount)}"
    if mount.is_network or free < _TEMPORARY_GB:
        return warning("TMPDIR", found, "set TMPDIR to a roomy folder on this node's own disk")
    return ok("TMPDIR", found)


def check_extensions() -> Row:
    """Where torch compiles extensions, and whether a killed start has left a lock there."""
    folder = extensions_folder()
    if locks := stale_locks():
        return warning("compile locks", f"{len(locks)} in {folder}", describe_locks(locks))
    mount = mount_of(folder)
    found = f"none in {_describe(folder, mount)}"
    if mount.is_network:
        return warning(
            "compile locks",
            found,
            "nodes that share it wait for each other, and for a killed one without end: set "
            "TORCH_EXTENSIONS_DIR to a folder on each node's own disk",
        )
    return ok("compile locks", found)


def _describe(folder: Path, mount: Mount) -> str:
    network = ", a network file system" if mount.is_network else ""
    return f"{folder} ({mount.kind}{network})"
