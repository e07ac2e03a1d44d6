"""What a run would be: settings, size, cost, and a look at its data and labels."""

from collections.abc import Iterator

import torch
from torch import nn

from etude.pretrain.assemble import build_objective, hours_per_update
from etude.pretrain.config import Config
from etude.pretrain.config_file import dump_yaml
from etude.pretrain.flops import crop_flops
from etude.pretrain.inputs import Inputs
from etude.pretrain.label_check import check_labels
from etude.pretrain.memory import count_parameters, estimate_memory, find_device, stage_of
from etude.pretrain.planning import describe_plan, describe_time
from etude.pretrain.run_folder import RunFolder


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
    yield f"  which micro-batch           {inputs.choice}"
    memory = estimate_memory(
        config,
        count_parameters(config, inputs.classes),
        micro_batch=share.micro_batch,
        ranks=share.ranks,
        stage=stage_of(config),
        device=device.type,
    )
    yield f"  memory per rank             about {memory.total / 1e9:.1f} GB (estimate)"
    parts = (f"{name} {size / 1e9:.2f}" for name, size in vars(memory).items())
    yield f"  of these                    {', '.join(parts)}"
    yield f"  updates                     {config.train.max_steps:,}"
    heard = hours * config.train.max_steps
    yield f"  audio heard                 {heard:,.1f} h"
    crops = config.train.max_steps * share.global_batch
    each = f"({config.data.crops_per_clip} crops per clip each)"
    for name, epochs in zip(inputs.names, inputs.train.epochs(crops), strict=True):
        yield f"  epochs of {name:<18}{epochs:,.1f} {each}"
    flops = crop_flops(
        config.model, config.objective, samples=config.crop_samples, classes=inputs.classes
    ).total
    time = describe_time(config, folder, flops, ranks=share.ranks)
    yield f"  time to the end             {time}"
    yield "plan"
    # Devices like this one, each to itself; who states a device's memory plans for GPUs.
    kind = device.type if config.perf.device_gbytes is None else "cuda"
    one = find_device(config, kind, ranks_here=1)
    yield from describe_plan(config, inputs.classes, one, folder)
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
