"""Whether torch can compute on this rank's device, and gets the right numbers."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from etude.pretrain.doctor.rows import Row, failed, ok, unchecked, warning

DRIVER = Path("/proc/driver/nvidia/version")
_ROWS = 256


def device_rows(local_rank: int, *, alone: bool, bf16: bool) -> list[Row]:
    """What there is to say of this rank's device.

    :param alone: whether there are no other ranks: then all devices are looked at.
    :param bf16: whether the run computes in it.
    """
    build = f"torch {torch.__version__} (CUDA {torch.version.cuda or 'none'})"
    if not torch.cuda.is_available():
        return [
            _no_gpu(build, driver_version(DRIVER)),
            unchecked("bf16", "no GPU"),
            check_product(torch.device("cpu"), torch.float32),
        ]
    count = torch.cuda.device_count()
    if local_rank >= count:
        return [
            failed(
                "gpu",
                f"local rank {local_rank}, but this host shows {count} GPUs",
                "start as many ranks per node as there are GPUs, or look at CUDA_VISIBLE_DEVICES",
            )
        ]
    numbers = list(range(count)) if alone else [local_rank]
    names = ", ".join(sorted({torch.cuda.get_device_name(number) for number in numbers}))
    rows = [
        ok(
            "gpu",
            f"{count} x {names}, driver {driver_version(DRIVER) or 'unknown'}, {build}, "
            f"NCCL {nccl_version()}",
        )
    ]
    archs = torch.cuda.get_arch_list()
    for number in numbers:
        capability = torch.cuda.get_device_capability(number)
        rows.append(_check_build(number, capability, archs))
        if rows[-1].mark == "failed":
            continue
        with torch.cuda.device(number):
            rows.append(_check_bf16(bf16))
        rows.append(check_product(torch.device("cuda", number), torch.float32))
        if rows[-2].mark == "ok":
            rows.append(check_product(torch.device("cuda", number), torch.bfloat16))
    return list(dict.fromkeys(rows))


def nccl_version() -> str:
    """Of the NCCL that torch was built with."""
    version: tuple[int, ...] = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
    return ".".join(map(str, version))


def driver_version(path: Path) -> str | None:
    """The NVIDIA driver's version, as the kernel module tells it."""
    try:
        found = re.search(r"NVRM version:.*?\s(\d+\.\d+(?:\.\d+)?)\s", path.read_text() + "\n")
    except OSError:
        return None
    return found[1] if found else None


def runs_on(capability: tuple[int, int], archs: Sequence[str]) -> bool:
    """Whether a torch built for ``archs`` has code for a GPU of this compute capability.

    Binary code (``sm_80``) runs on the same major version from its minor one on, that of one
    architecture (``sm_90a``) on this alone; intermediate code (``compute_90``) is compiled by the
    driver for anything later.
    """
    for arch in archs:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", arch)
        if found is None:
            continue
        kind, built = found[1], (int(found[2]), int(found[3]))
        if found[4] == "a":
            if built == capability:
                return True
        elif kind == "compute" and not found[4]:
            if built <= capability:
                return True
        elif built[0] == capability[0] and built[1] <= capability[1]:
            return True
    return False


@torch.no_grad()
def check_product(device: torch.device, dtype: torch.dtype) -> Row:
    """A product of small whole numbers: it has no rounding, so every device must get it exactly."""
    name = f"product {'bf16' if dtype is torch.bfloat16 else 'fp32'}"
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randint(-3, 4, (2, _ROWS, _ROWS), generator=generator)
    expected = left @ right
    try:
        product = left.to(device, dtype) @ right.to(device, dtype)
        # bfloat16 counts up to 256 without gaps, and its sums are rounded beyond.
        wrong = (product.cpu().double() - expected).abs() > (
            expected.abs() / 128 if dtype is torch.bfloat16 else 0
        )
    except RuntimeError as error:
        return failed(
            name,
            f"{device}: {str(error).strip().partition(chr(10))[0]}",
            "another process may hold the device (nvidia-smi), or the driver is too old",
        )
    if count := int(wrong.sum()):
        return failed(
            name,
            f"{device}: {count} of {wrong.numel()} numbers of a matrix product are wrong",
            "the device is broken, or its libraries are: take it out of service",
        )
    return ok(name, f"a matrix product on {device.type} is right")


def _no_gpu(build: str, driver: str | None) -> Row:
    if driver is None:
        return unchecked("gpu", f"no NVIDIA driver here: training would run on the CPU; {build}")
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return unchecked("gpu", f"CUDA_VISIBLE_DEVICES hides all; driver {driver}, {build}")
    if torch.version.cuda is None:
        advice = "install a torch built for CUDA"
    else:
        advice = (
            "the driver may be older than this CUDA needs, or CUDA_VISIBLE_DEVICES hides the GPUs"
        )
    return failed("gpu", f"driver {driver}, but {build} sees no GPU", advice)


def _check_build(number: int, capability: tuple[int, int], archs: Sequence[str]) -> Row:
    shown = f"compute capability {capability[0]}.{capability[1]}"
    if runs_on(capability, archs):
        return ok("gpu build", f"{shown}, torch is built for {' '.join(archs)}")
    return failed(
        "gpu build",
        f"GPU {number} has {shown}, but torch is built for {' '.join(archs) or 'none'}",
        "install a torch that is built for this GPU, or use another GPU",
    )


def _check_bf16(wanted: bool) -> Row:
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return ok("bf16", "supported")
    if not wanted:
        return unchecked("bf16", "not supported, and not asked for")
    return warning(
        "bf16", "this GPU has none: it would be imitated, slowly", "train.precision=fp32"
    )
