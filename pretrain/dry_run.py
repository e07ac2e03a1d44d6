"""What a run would be: settings, size, cost, and a look at its data and labels."""

import statistics
from collections.abc import Iterator

import torch
from torch import nn

from etude.pretrain.assemble import build_objective, hours_per_update
from etude.pretrain.config import Config
from etude.pretrain.config_file import dump_yaml
from etude.pretrain.inputs import Inputs
from etude.pretrain.label_check import check_labels
from etude.pretrain.run_folder import RunFolder, read_metrics


def describe_run(
    config: Config, inputs: Inputs, folder: RunFolder, device: torch.device
) -> Iterator[str]:
    """Lines of the report; building the model and checking the labels is all that is run.

    :raises DataError: if the labels cannot be right.
    """
    yield dump_yaml(config).rstrip()
    yield ""
    objective = build_objective(config, inputs)
    yield "parameters"
    for name, count in _parameters(objective):
        yield f"  {name:<28}{count:>14,}"
    share = inputs.share
    hours = hours_per_update(config)
    yield "data"
    for corpus in inputs.corpora:
        yield f"  corpus                      {corpus.place}, {corpus.sample_rate} Hz"
        for split in ("train", "valid"):
            clips = corpus.clips(split)
            yield f"  {split:<28}{clips:,} clips, {corpus.seconds(split) / 3600:.2f} h"
    too_short = sum(part.too_short for part in inputs.train.parts)
    yield f"  clips too short for a crop  {too_short}"
    yield "cost"
    yield f"  audio per update            {hours * 3600:,.0f} s ({share.global_batch} crops)"
    yield (
        f"  micro-batches               {share.micro_batches} x {share.micro_batch} crops on each "
        f"of {share.ranks} ranks"
    )
    memory = _memory_gb(config, objective, share.micro_batch)
    yield f"  memory per rank             about {memory:.1f} GB (estimate)"
    yield f"  updates                     {config.train.max_steps:,}"
    heard = hours * config.train.max_steps
    yield f"  audio heard                 {heard:,.1f} h"
    crops = config.train.max_steps * share.global_batch
    each = f"({config.data.crops_per_clip} crops per clip each)"
    for name, epochs in zip(inputs.names, inputs.train.epochs(crops), strict=True):
        yield f"  epochs of {name:<18}{epochs:,.1f} {each}"
    yield f"  time to the end             {_time_left(config, folder)}"
    yield "labels"
    for line in check_labels(config, inputs):
        yield f"  {line}"
    for note in inputs.notes:
        yield f"note: {note}"
    yield "dry run: all checks passed, nothing was trained"


def _parameters(objective: nn.Module) -> list[tuple[str, int]]:
    def count(module: nn.Module, *, trained: bool = True) -> int:
        parameters = module.parameters()
        return sum(p.numel() for p in parameters if p.requires_grad == trained)

    encoder = objective.get_submodule("encoder")
    rows = [(f"encoder.{name}", count(child)) for name, child in encoder.named_children()]
    rows = [(name, size) for name, size in rows if size]
    rows.append(("encoder", count(encoder)))
    targets = objective.get_submodule("targets")
    rows += [(f"head of {name}", count(child)) for name, child in targets.named_children()]
    others = [child for name, child in objective.named_children() if name == "decoder"]
    rows += [("decoder", count(child)) for child in others]
    rows.append(("all that is trained", count(objective)))
    if kept := count(objective, trained=False):
        rows.append(("teacher (not trained)", kept))
    return rows


def _memory_gb(config: Config, objective: nn.Module, micro_batch: int) -> float:
    # Weights, gradients and two moments in float32, and what the backward pass keeps: about 34
    # values per frame, layer and width in the transformer and 4 per conv output.
    parameters = sum(parameter.numel() for parameter in objective.parameters())
    model = config.model
    frames = model.grid.num_frames(config.crop_samples)
    kept = 34 * frames * model.layers * model.dim
    kept += 2 * model.layers * model.heads * frames**2 if model.attention_dropout else 0
    samples = config.crop_samples
    for channels, stride in zip(model.conv_dims, model.conv_strides, strict=True):
        samples //= stride
        kept += 4 * channels * samples
    value_bytes = 2 if config.train.precision == "bf16" else 4
    return (16 * parameters + value_bytes * kept * micro_batch) / 1e9


def _time_left(config: Config, folder: RunFolder) -> str:
    lines = list(read_metrics(folder.metrics))
    speeds = [line["perf/crops_per_second"] for line in lines if "perf/crops_per_second" in line]
    if not speeds:
        return "unknown until this run has trained a little"
    left = config.train.max_steps - int(lines[-1]["step"])
    hours = left * config.train.global_batch / statistics.median(speeds) / 3600
    return (
        f"{hours:,.2f} h at the {statistics.median(speeds):.1f} crops/s measured in {folder.path}"
    )
