"""Shared memory, open files and memory of a host, against what a run needs of them."""

import os
import resource
from pathlib import Path

import torch

from etude.data.pipeline import PREFETCH
from etude.pretrain.doctor.rows import Row, failed, ok, warning

_SHARED = Path("/dev/shm")
_CODE_BYTES = 8
_OWN_FILES = 512
"""Descriptors of a training process beside its loader's: libraries, shards, sockets, logs."""
_FILES_PER_BATCH = 8
"""Tensors of a micro-batch in shared memory, each an open file in the process that takes it."""


def batch_bytes(micro_batch: int, *, crop_samples: int, codes: int = 0) -> int:
    """A micro-batch on its way from a worker: audio in int16, codes (so many per crop) in int64."""
    return micro_batch * (2 * crop_samples + _CODE_BYTES * codes)


def shared_bytes(each: int, *, workers: int, ranks: int) -> int:
    """What the loaders of ``ranks`` ranks on one host hold in shared memory at most.

    Each worker has ``PREFETCH`` micro-batches of ``each`` bytes ready and makes another.
    """
    return ranks * workers * (PREFETCH + 1) * each


def check_shared_memory(need: int) -> Row:
    """Whether ``need`` bytes fit into ``/dev/shm``."""
    try:
        usage = os.statvfs(_SHARED)
    except OSError as error:
        return failed("shared memory", f"{_SHARED}: {error.strerror}", "mount a tmpfs there")
    return judge_shared_memory(usage.f_bavail * usage.f_frsize, need)


def judge_shared_memory(free: int, need: int) -> Row:
    """The arithmetic of :func:`check_shared_memory`; containers often have 64 MB."""
    if not need:
        return ok("shared memory", f"{free / 1e9:.2f} GB free; data.workers=0 needs none")
    found = (
        f"{free / 1e9:.2f} GB free in {_SHARED}; the loaders of this host's ranks need up to "
        f"{need / 1e9:.3f} GB (data.workers x {PREFETCH + 1} micro-batches)"
    )
    advice = "`docker run --ipc=host` or --shm-size, or lower data.workers or train.micro_batch"
    if free < need:
        return failed("shared memory", found, advice)
    if free < 2 * need:
        return warning("shared memory", found, advice)
    return ok("shared memory", found)


def check_open_files(workers: int) -> Row:
    """The limit of open files per process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return judge_open_files(soft, hard, workers)


def judge_open_files(soft: int, hard: int, workers: int) -> Row:
    """The arithmetic of :func:`check_open_files`."""
    need = _OWN_FILES + workers * (PREFETCH + 1) * _FILES_PER_BATCH
    if soft == resource.RLIM_INFINITY:
        return ok("open files", "no limit")
    found = f"at most {soft:,} per process; a rank needs about {need:,}"
    if soft < need:
        enough = max(need, 4096)
        if hard == resource.RLIM_INFINITY or hard >= enough:
            advice = f"`ulimit -n {enough}` before the start"
        else:
            advice = f"have the hard limit raised: limits.conf, or --ulimit nofile={enough}"
        return failed("open files", found, advice)
    return ok("open files", found)


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that processes may still take: the machine's, or what is left of the container's."""
    lines = (root / "proc/meminfo").read_text().splitlines()
    values = {name: rest for name, _, rest in (line.partition(":") for line in lines)}
    available = int(values["MemAvailable"].split()[0]) * 1024
    group = root / "sys/fs/cgroup"
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        # Files that were read are counted, and given up when they are in the way.
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # another version, none, or "max"
        return available
    return min(available, limit - used + int(stat.get("file", 0)))


def check_memory(each: float, *, ranks: int, device: torch.device) -> Row:
    """Whether ``each`` bytes, by estimate, fit into the device, or into memory for every rank."""
    if device.type == "cuda":
        return judge_memory(torch.cuda.mem_get_info(device)[0], each, ranks=1, where=str(device))
    return judge_memory(available_memory(), each, ranks=ranks, where="this host")


def judge_memory(available: float, each: float, *, ranks: int, where: str) -> Row:
    """The arithmetic of :func:`check_memory`."""
    taken = f"{each / 1e9:.1f} GB by estimate"
    if ranks > 1:
        taken = f"{ranks} x {taken}"
    found = f"{available / 1e9:.1f} GB free on {where}; training takes {taken}"
    if available < each * ranks:
        return failed("memory", found, "end what else runs there, or lower train.micro_batch")
    return ok("memory", found)
