"""What the devices could do at most: the matrix products that ``perf/mfu`` is a share of."""

import time
from functools import cache

import torch

from etude.pretrain.config import Config
from etude.pretrain.distributed import World, sum_over_ranks

_SIDE = 8192
_WARM_UP, _TIMED = 3, 20


def total_peak(config: Config, world: World) -> float | None:
    """FLOP/s of large matrix products on all ranks together, the same on each; every rank calls it.

    ``perf.peak_tflops`` where it is given; else a GPU is measured in the run's precision, once
    per process, in well under a second. A CPU is not: what its products reach depends on who else
    uses its cores.
    """
    given = config.perf.peak_tflops
    if given is not None:
        return given * 1e12 * world.size
    if world.device.type != "cuda":
        return None
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    measured = torch.tensor(measure_peak(world.device, dtype), dtype=torch.float64)
    return float(sum_over_ranks([measured.to(world.device)])[0])


@cache
def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a product of two large square matrices on a GPU, a row of them after a warm-up.

    In float32 with TF32 where the run has it, as its own products do.
    """
    # A generator of its own: the run's random numbers stay where they are.
    generator = torch.Generator(device).manual_seed(0)
    factor = torch.randn(_SIDE, _SIDE, device=device, dtype=dtype, generator=generator)
    product = torch.empty_like(factor)

    def seconds(times: int) -> float:
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        for _ in range(times):
            torch.mm(factor, factor, out=product)
        torch.cuda.synchronize(device)
        return time.perf_counter() - began

    seconds(_WARM_UP)
    return _TIMED * 2 * _SIDE**3 / seconds(_TIMED)
