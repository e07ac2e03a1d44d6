"""Who the ranks are, and whether they are alike."""

import os
import platform
import socket
from collections.abc import Mapping
from typing import Any

import torch

from etude.pretrain.doctor.devices import DRIVER, driver_version, nccl_version
from etude.pretrain.doctor.rows import Row, failed, name_ranks, ok, unchecked, warning
from etude.pretrain.doctor.versions import code_fingerprint, installed_versions, same_everywhere

_MUST_AGREE = ("torch", "CUDA", "NCCL", "deepspeed", "fairseq2", "etude's code")
"""Ranks that differ in these may hang or train something else."""


def identity(local_rank: int) -> dict[str, Any]:
    """This rank: host, process, device, and the versions of all that it computes with."""
    versions = {
        "python": platform.python_version(),
        **installed_versions(),
        "CUDA": torch.version.cuda or "none",
        "driver": driver_version(DRIVER) or "none",
        "etude's code": code_fingerprint(),
    }
    gpu = None
    device = f"CPU, {len(os.sched_getaffinity(0))} cores"
    if torch.cuda.is_available() and local_rank < torch.cuda.device_count():
        properties = torch.cuda.get_device_properties(local_rank)
        gpu, device = str(properties.uuid), properties.name
        versions["NCCL"] = nccl_version()
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "gpu": gpu,
        "device": device,
        "versions": {**versions, "device": device},
    }


def rows_of_ranks(told: Mapping[int, Mapping[str, Any]]) -> list[Row]:
    """What the ranks' identities say together."""
    hosts = {rank: str(one["host"]) for rank, one in told.items()}
    if len(told) == 1:
        (one,) = told.values()
        return [
            unchecked(
                "ranks",
                f"one rank alone ({one['host']}, process {one['pid']}, {one['device']}): the "
                "launcher of training (torchrun, srun, deepspeed) starts more",
            )
        ]
    places = dict.fromkeys(hosts.values())
    listed = "; ".join(
        f"{host}: "
        + ", ".join(
            f"{rank} (process {told[rank]['pid']})" for rank in hosts if hosts[rank] == host
        )
        for host in list(places)[:4]
    )
    more = f"; and {len(places) - 4} more hosts" if len(places) > 4 else ""
    number = "1 host" if len(places) == 1 else f"{len(places)} hosts"
    rows = [ok("ranks", f"{len(told)} ranks on {number}, all came: {listed}{more}")]
    rows += differences({rank: one["versions"] for rank, one in told.items()}, hosts)
    shared = sharing({rank: (str(one["host"]), one["gpu"]) for rank, one in told.items()})
    rows += [
        failed(
            "ranks apart",
            f"{name_ranks(ranks, hosts)} compute on the same GPU",
            "give each rank its own: look at CUDA_VISIBLE_DEVICES and --gpus-per-task",
        )
        for ranks in shared
    ]
    return rows


def differences(versions: Mapping[int, Mapping[str, str]], hosts: Mapping[int, str]) -> list[Row]:
    """What differs between ranks, and on which."""
    rows = []
    for name, by_value in same_everywhere(versions).items():
        (common, _), *others = by_value.items()
        found = f"{name} {common} on most, but " + ", ".join(
            f"{value} on {name_ranks(ranks, hosts)}" for value, ranks in others
        )
        if name in _MUST_AGREE:
            rows.append(failed("ranks alike", found, "install the same on every node"))
        else:
            rows.append(warning("ranks alike", found, "the slowest sets the pace of all"))
    return rows or [ok("ranks alike", "versions, drivers, devices and code are the same")]


def sharing(devices: Mapping[int, tuple[str, str | None]]) -> list[list[int]]:
    """Ranks that compute on one GPU; each is given as (host, GPU or ``None``)."""
    groups: dict[tuple[str, str], list[int]] = {}
    for rank, (host, gpu) in devices.items():
        if gpu is not None:
            groups.setdefault((host, gpu), []).append(rank)
    return [ranks for ranks in groups.values() if len(ranks) > 1]
