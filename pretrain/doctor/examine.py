"""All checks in their order, on every rank; each yields what all ranks found together.

    who is there -> versions, device -> this host -> corpus -> disk, memory -> collectives
    -> loader -> an update -> one against the other

Every rank takes the same way through this file: whatever decides it has been told by all.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from etude.pretrain.config import Config
from etude.pretrain.distributed import World, current_world
from etude.pretrain.doctor.collectives import rows_of_times, time_collectives
from etude.pretrain.doctor.devices import device_rows
from etude.pretrain.doctor.disk import (
    check_extensions,
    check_inodes,
    check_space,
    check_temporary,
    check_writing,
    shown,
)
from etude.pretrain.doctor.meeting import Meeting, MissingRanksError, limited
from etude.pretrain.doctor.memory import (
    check_memory,
    check_open_files,
    check_shared_memory,
    shared_bytes,
)
from etude.pretrain.doctor.opening import Opened, open_run
from etude.pretrain.doctor.ranks import identity, rows_of_ranks
from etude.pretrain.doctor.rows import (
    LOST_RANK,
    Row,
    failed,
    merged,
    name_ranks,
    ok,
    unchecked,
)
from etude.pretrain.doctor.trial import try_training
from etude.pretrain.doctor.versions import check_versions, own_python, own_requirements

_SEEN_SECONDS = 5.0
"""How long a network file system may take to show a new file to another node."""

Leave = Callable[[str], None]
"""Says what a rank hangs in, and ends the process."""


def examine(
    config: Config | None, meeting: Meeting, *, seconds: float, leave: Leave
) -> Iterator[Row]:
    """The report, row by row; every rank goes through it and gets the same.

    :param seconds: what loading and training are tried for, about.
    :param leave: called from another thread where a collective does not return.
    """
    try:
        yield from _all(config, meeting, seconds, leave)
    except MissingRanksError as error:
        yield missing(error, meeting)
        if error.stage == "start":
            yield from _rank_rows(config, meeting)
            yield from _host_rows(config)
        yield unchecked("the rest", "it takes all ranks")


def missing(error: MissingRanksError, meeting: Meeting) -> Row:
    """Who did not come."""
    return failed(
        "ranks",
        f"{name_ranks(error.ranks, meeting.hosts)} did not come to '{error.stage}' within "
        f"{meeting.timeout:g} s",
        "see whether it was started, what it printed last, and whether its node reaches "
        "MASTER_ADDR",
        status=LOST_RANK,
    )


def _all(config: Config | None, meeting: Meeting, seconds: float, leave: Leave) -> Iterator[Row]:
    identities = meeting.tell("start", identity(meeting.local_rank))
    meeting.hosts = {rank: one["host"] for rank, one in identities.items()}
    yield from rows_of_ranks(identities)

    rows = _together(meeting, "versions and devices", list(_rank_rows(config, meeting)))
    yield from rows
    usable = not _failed([row for row in rows if row.check != "versions"])
    yield from _together(meeting, "host", _host_rows(config) if meeting.is_first_here else [])
    if usable:
        world = current_world()
    else:  # the device itself would end the process
        world = World(meeting.rank, meeting.size, meeting.local_rank, torch.device("cpu"))

    run, rows = (None, []) if config is None else open_run(config, world)
    rows = _together(meeting, "corpus", rows)
    yield from rows
    if _failed(rows):
        run = None  # on all ranks
    if config is None:
        yield unchecked("run.dir", "no CONFIG given")
    else:
        yield from _run_folder_rows(config, run, meeting)

    rows = [] if run is None else _memory_rows(run, meeting, world)
    rows = _together(meeting, "memory", rows)
    yield from rows
    hindrance = "there is too little memory" if _failed(rows) else None
    if meeting.size == 1:
        yield unchecked("collectives", "one rank alone")
    elif not usable:
        yield unchecked("collectives", "a device has failed")
    else:
        rows = list(_collective_rows(meeting, world, leave))
        yield from rows
        if _failed(rows):
            hindrance = "collectives have failed"

    if run is None:
        yield unchecked(
            "loader and step", "no CONFIG given" if config is None else "nothing to read"
        )
    else:
        yield from try_training(
            run,
            meeting,
            world,
            seconds=seconds,
            hindrance=hindrance if usable else "a device has failed",
            leave=leave,
        )


def _rank_rows(config: Config | None, meeting: Meeting) -> Iterator[Row]:
    yield check_versions(own_requirements(), own_python())
    bf16 = config is not None and config.train.precision == "bf16"
    yield from device_rows(meeting.local_rank, alone=meeting.size == 1, bf16=bf16)


def _host_rows(config: Config | None) -> list[Row]:
    workers = 0 if config is None else config.data.workers
    return [check_temporary(), check_extensions(), check_open_files(workers)]


def _run_folder_rows(config: Config, run: Opened | None, meeting: Meeting) -> list[Row]:
    """The first rank of each host looks; nothing of it stays."""
    folder, rows = config.run.dir, []
    each = None if run is None else run.checkpoint_bytes
    if meeting.is_first_here:
        if each is None:
            rows.append(unchecked("run.dir space", "without a corpus the model is not known"))
        else:
            rows.append(check_space(folder, each=each, keep=config.checkpoint.keep))
        rows += [check_inodes(folder), check_writing(folder, each=each)]
    rows = _together(meeting, "run.dir", rows)
    if len(set(meeting.hosts.values())) > 1 and not _failed(rows):
        rows += _shared_rows(folder, meeting)
    return rows


def _shared_rows(folder: Path, meeting: Meeting) -> list[Row]:
    """Whether all hosts see a file that rank 0 makes: they write one checkpoint together."""
    with shown(folder if meeting.rank == 0 else None) as path:
        place = meeting.tell("a file in run.dir", None if path is None else str(path))[0]
        deadline = time.monotonic() + _SEEN_SECONDS
        while not (seen := Path(place).exists()) and time.monotonic() < deadline:
            time.sleep(0.2)
        told = meeting.tell("who sees it", seen, seconds=_SEEN_SECONDS)
    if blind := [rank for rank, sees in told.items() if not sees]:
        return [
            failed(
                "run.dir shared",
                f"{name_ranks(blind, meeting.hosts)} cannot see what rank 0 writes to {place}",
                "put run.dir on a file system that all nodes share",
            )
        ]
    return [ok("run.dir shared", "all hosts see the same folder")]


def _memory_rows(run: Opened, meeting: Meeting, world: World) -> list[Row]:
    """Each GPU is looked at by its rank, a host's own memory by the first."""
    ranks, workers = meeting.on_this_host, run.config.data.workers
    rows = []
    if meeting.is_first_here:
        need = shared_bytes(run.batch_bytes, workers=workers, ranks=ranks)
        rows.append(check_shared_memory(need))
    if meeting.is_first_here or run.device == "cuda":
        rows.append(check_memory(run.memory_bytes, ranks=ranks, device=world.device))
    return rows


def _collective_rows(meeting: Meeting, world: World, leave: Leave) -> Iterator[Row]:
    times: dict[str, object] = {}
    with limited(meeting.timeout, partial(leave, "all_reduce")):
        try:
            meeting.start_collectives("nccl" if world.device.type == "cuda" else "gloo")
            times = time_collectives(world.device)
        except RuntimeError as error:
            times = {"error": str(error).strip().partition("\n")[0]}
    told = meeting.tell("all_reduce", times, seconds=meeting.timeout)
    errors = {
        rank: [
            failed(
                "all_reduce",
                one["error"],
                "look at the network between the nodes: GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME, "
                "NCCL_DEBUG=INFO, firewalls",
            )
        ]
        for rank, one in told.items()
        if "error" in one
    }
    if errors:
        yield from merged(errors, meeting.hosts)
    else:
        yield from rows_of_times(told, meeting.hosts)


def _together(meeting: Meeting, stage: str, rows: Sequence[Row]) -> list[Row]:
    """What all ranks found."""
    told = meeting.tell(stage, [asdict(row) for row in rows])
    return merged({rank: [Row(**row) for row in own] for rank, own in told.items()}, meeting.hosts)


def _failed(rows: Sequence[Row]) -> bool:
    return any(row.mark == "failed" for row in rows)
