"""Who this process is among the ranks, under any launcher, and the few collectives we use."""

import os
import socket
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor
from torch import distributed as dist

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others before it gives up; ``train.hang_seconds`` comes before."""


@dataclass(frozen=True)
class World:
    """This process's place."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the one rank that writes and reports."""
        return self.rank == 0


def rank_from_environment() -> tuple[int, int, int]:
    """(rank, ranks, local rank) from the launcher's variables, before torch is set up.

    ``deepspeed`` and ``torchrun`` set RANK, WORLD_SIZE and LOCAL_RANK; ``srun`` sets SLURM_*;
    plain ``python`` sets nothing and is a world of one.
    """
    environment = os.environ
    if "RANK" in environment:
        return (
            int(environment["RANK"]),
            int(environment["WORLD_SIZE"]),
            int(environment.get("LOCAL_RANK", "0")),
        )
    # A step of one task is `python` inside an interactive allocation as well: a world of one.
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return (
            int(environment["SLURM_PROCID"]),
            int(environment["SLURM_NTASKS"]),
            int(environment["SLURM_LOCALID"]),
        )
    return 0, 1, 0


def complete_environment() -> None:
    """Sets the variables that torch and DeepSpeed expect where the launcher did not."""
    rank, size, local_rank = rank_from_environment()
    os.environ.setdefault("RANK", str(rank))
    os.environ.setdefault("WORLD_SIZE", str(size))
    os.environ.setdefault("LOCAL_RANK", str(local_rank))
    if "MASTER_ADDR" not in os.environ:
        nodes = os.environ.get("SLURM_STEP_NODELIST")
        os.environ["MASTER_ADDR"] = _first_node(nodes) if size > 1 and nodes else "127.0.0.1"
    if "MASTER_PORT" not in os.environ:
        # Ranks under srun must agree without talking: a port from the job's number.
        job = os.environ.get("SLURM_JOB_ID")
        os.environ["MASTER_PORT"] = str(20_000 + int(job) % 20_000) if job else str(_free_port())


def current_world() -> World:
    """This process's place, with its device made current."""
    rank, size, local_rank = rank_from_environment()
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        return World(rank, size, local_rank, torch.device("cuda", local_rank))
    if "OMP_NUM_THREADS" not in os.environ:
        # Each rank would take every core, and ranks that share cores this way are several times
        # slower than ranks that divide them.
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks_on_this_node(size)))
    return World(rank, size, local_rank, torch.device("cpu"))


def sum_over_ranks(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The tensors added over all ranks, in one all-reduce; every rank passes the same shapes."""
    parts = list(tensors)
    if not parts or not dist.is_initialized() or dist.get_world_size() == 1:
        return parts
    flat = torch.cat([part.flatten() for part in parts])
    dist.all_reduce(flat)
    split = torch.split(flat, [part.numel() for part in parts])
    return [piece.view(part.shape) for piece, part in zip(split, parts, strict=True)]


def all_succeeded(success: bool, device: torch.device) -> bool:
    """Whether every rank says so; every rank calls it and gets the same answer."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return success
    failures = torch.tensor(float(not success), device=device)
    dist.all_reduce(failures)
    return not bool(failures)


def same_on_all(number: int, device: torch.device) -> bool:
    """Whether every rank gives the same; every rank calls it and gets the same answer."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return True
    bounds = torch.tensor([number, -number], device=device)
    dist.all_reduce(bounds, op=dist.ReduceOp.MAX)
    return bool(bounds[0] == -bounds[1])


def barrier() -> None:
    """Waits for all ranks."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()


def ranks_on_this_node(size: int) -> int:
    """How many of ``size`` ranks share this machine."""
    # By torchrun, DeepSpeed and Slurm, in this order.
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "SLURM_NTASKS_PER_NODE"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return size


def _first_node(nodes: str) -> str:
    listed = subprocess.run(
        ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True
    )
    return listed.stdout.split()[0]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
