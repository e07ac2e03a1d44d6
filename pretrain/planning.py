"""What a run would cost on 1 to 256 devices: memory by estimate, time from one measured speed.

    compute    crops of a rank x FLOPs of a crop / what a device sustains
    reduce     2 (N - 1) / N x 4 bytes per trained parameter / what a rank sends per second
    update     between two bounds: reduction hidden behind the last micro-batch's backward (two
               thirds of its time), and not hidden at all

What a device sustains is measured by the run itself, or stated (``perf.assumed_tflops``), or
unknown; what a link carries is stated. Every number says which. The sum of bytes is that of a ring
(Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms", 2009).
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from etude.pretrain.config import Config
from etude.pretrain.errors import ConfigError
from etude.pretrain.flops import crop_flops
from etude.pretrain.inputs import choose_micro_batch
from etude.pretrain.memory import (
    Device,
    Parameters,
    count_parameters,
    estimate_memory,
    stage_of,
)
from etude.pretrain.run_folder import RunFolder, read_metrics

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_STAGES = (0, 1, 2)
_BACKWARD = 2 / 3
"""Share of a micro-batch's time."""


@dataclass(frozen=True)
class Speed:
    """What one rank gets through."""

    crops_per_second: float
    origin: str


@dataclass(frozen=True)
class Update:
    """Seconds of an update on a number of ranks."""

    compute: float
    reduce: float
    hidden: float
    """All of it, with as much of the reduction behind backward as fits there."""

    @property
    def exposed(self) -> float:
        """All of it, with none there."""
        return self.compute + self.reduce


def find_speed(config: Config, folder: RunFolder, flops: float) -> Speed | None:
    """Measured in the run's folder, or stated; ``None`` where it is neither.

    :param flops: of one crop.
    """
    lines = list(read_metrics(folder.metrics))
    measured = [
        line["perf/crops_per_second"] / line["perf/ranks"] for line in lines if "perf/ranks" in line
    ]
    if measured:
        ranks = round(next(line["perf/ranks"] for line in lines[::-1] if "perf/ranks" in line))
        return Speed(
            statistics.median(measured),
            f"measured in {folder.path} on {ranks} rank{'s' if ranks > 1 else ''}, its own waiting "
            "included",
        )
    assumed = config.perf.assumed_tflops
    if assumed is None:
        return None
    return Speed(
        assumed * 1e12 / flops, f"from perf.assumed_tflops = {assumed:g}, stated and not measured"
    )


def predict_update(
    config: Config, speed: Speed, *, trained: int, ranks: int, micro_batches: int
) -> Update:
    """Time of an update.

    :param trained: parameters whose gradients are reduced.
    :param micro_batches: accumulated on each rank.
    """
    perf = config.perf
    compute = config.train.global_batch / ranks / speed.crops_per_second
    near = ranks <= perf.gpus_per_node
    sent = 1e9 * (perf.link_gbytes_per_second if near else perf.network_gbytes_per_second)
    reduce = 2 * (ranks - 1) / ranks * 4 * trained / sent
    behind = _BACKWARD * compute / micro_batches
    return Update(compute, reduce, compute + max(0.0, reduce - behind))


def describe_plan(
    config: Config, classes: dict[str, int], device: Device, folder: RunFolder
) -> Iterator[str]:
    """Lines of a table for 1 to 256 devices like ``device``.

    :param classes: classes (per codebook) of each target that has any.
    """
    flops = crop_flops(
        config.model, config.objective, samples=config.crop_samples, classes=classes
    ).total
    parameters = count_parameters(config, classes)
    speed = find_speed(config, folder, flops)
    kind = "GPU" if device.kind == "cuda" else "CPU"
    yield f"  a crop                      {flops / 1e9:,.1f} GFLOP (counted)"
    yield f"  each device                 {kind}, {device}; GB below are estimates"
    yield f"  speed of a rank             {_describe_speed(speed, flops)}"
    perf = config.perf
    yield (
        f"  all-reduce                  {4 * parameters.trained / 1e6:,.0f} MB of gradients over "
        f"{perf.link_gbytes_per_second:g} GB/s up to {perf.gpus_per_node} ranks, "
        f"{perf.network_gbytes_per_second:g} GB/s beyond (stated: perf.*)"
    )
    yield (
        f"  data                        {max(1, config.data.workers)} workers per rank "
        "(data.workers); the last column is what each must deliver"
    )
    yield _row(
        "ranks",
        "micro x acc.",
        *(f"ZeRO {stage} GB" for stage in _STAGES),
        "compute s",
        "reduce s",
        "update s",
        "hours to the end",
        "crops/s",
        "per worker",
    )
    done = [int(line["step"]) for line in read_metrics(folder.metrics)]
    left = max(0, config.train.max_steps - max(done, default=0))
    for ranks in RANKS:
        yield _row(str(ranks), *_columns(config, classes, parameters, device, speed, ranks, left))
    yield (
        "  not counted: what a host needs to launch an update, which is most of it where micro-"
        "batches are small; * no mixture, as its group does not divide the micro-batch"
    )


def describe_time(config: Config, folder: RunFolder, flops: float, *, ranks: int) -> str:
    """How long the rest of the run takes on as many ranks as there are now."""
    speed = find_speed(config, folder, flops)
    if speed is None:
        return "unknown until this run has trained a little, or perf.assumed_tflops is given"
    done = max((int(line["step"]) for line in read_metrics(folder.metrics)), default=0)
    left = config.train.max_steps - done
    together = speed.crops_per_second * ranks
    hours = left * config.train.global_batch / together / 3600
    return f"{hours:,.2f} h at the {together:.1f} crops/s {speed.origin}"


def _columns(
    config: Config,
    classes: dict[str, int],
    parameters: Parameters,
    device: Device,
    speed: Speed | None,
    ranks: int,
    left: int,
) -> tuple[str, ...]:
    total = config.train.global_batch
    if total % ranks:
        return (f"do not divide train.global_batch ({total})",)
    micro_batch = config.train.micro_batch
    if micro_batch == "auto":
        try:
            micro_batch, _ = choose_micro_batch(config, classes, ranks=ranks, device=device)
        except ConfigError:
            return ("a micro-batch does not fit into the device's memory",)
    if (total // ranks) % micro_batch:
        return (f"share {total // ranks} crops, not a multiple of train.micro_batch",)
    micro_batches = total // ranks // micro_batch
    # Plain DDP has no stages: its memory stands in the first column.
    stages = _STAGES if stage_of(config) is not None else (None,)
    memory = [
        estimate_memory(
            config,
            parameters,
            micro_batch=micro_batch,
            ranks=ranks,
            stage=stage,
            device=device.kind,
        ).total
        for stage in stages
    ]
    sizes = [f"{size / 1e9:.1f}" for size in memory] + ["-"] * (len(_STAGES) - len(stages))
    mixture = config.objective.mixture
    unmixed = " *" if mixture.prob and micro_batch % mixture.group else ""
    columns = [f"{micro_batch} x {micro_batches}{unmixed}", *sizes]
    if speed is None:
        return (*columns, *["unknown"] * 6)
    update = predict_update(
        config, speed, trained=parameters.trained, ranks=ranks, micro_batches=micro_batches
    )
    crops = total / update.exposed, total / update.hidden
    return (
        *columns,
        _short(update.compute),
        _short(update.reduce) if update.reduce else "0",
        _between(update.hidden, update.exposed),
        _between(update.hidden * left / 3600, update.exposed * left / 3600),
        _between(*crops),
        _short(crops[1] / ranks / max(1, config.data.workers)),
    )


def _describe_speed(speed: Speed | None, flops: float) -> str:
    if speed is None:
        return "unknown until this run has trained a little, or perf.assumed_tflops is given"
    sustained = speed.crops_per_second * flops / 1e12
    return f"{_short(speed.crops_per_second)} crops/s, {_short(sustained)} TFLOP/s ({speed.origin})"


def _row(ranks: str, *columns: str) -> str:
    if len(columns) == 1:
        return f"  {ranks:>5}  {columns[0]}"
    widths = (12, 9, 9, 9, 10, 10, 17, 19, 17, 11)
    cells = (f"{cell:>{width}}" for cell, width in zip(columns, widths, strict=True))
    return f"  {ranks:>5}  {'  '.join(cells)}"


def _short(value: float) -> str:
    """Three digits that say something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _between(low: float, high: float) -> str:
    ends = _short(low), _short(high)
    return ends[0] if ends[0] == ends[1] else " - ".join(ends)
