"""How far features in windows are from those of the whole file, layer by layer.

    OMP_NUM_THREADS=1 python benchmarks/embed_windows.py MODEL AUDIO [AUDIO...] [--seconds S]
        [--windows 5,30] [--overlaps 0,0.1,0.2,0.5] [--whole-statistics]

Joins the audio files, in the order given and a folder's in that of names, to S seconds at the
model's rate, and prints relative L2 distances: |windowed - whole| / |whole| over all frames. A
distance from the whole file is no error: the model was trained on crops, not on whole files.
--whole-statistics gives the group norm of the front end the statistics of the whole file in every
window, so that what is left comes from the context of the layers.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from etude.data.mono_stream import mono_blocks
from etude.data.sources import scan_sources
from etude.models.embedding import window_deviation
from etude.models.windows import Samples, Windowing
from etude.probes.frozen import EncoderModel, find_model, load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("audio", type=Path, nargs="+")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--windows", default="5,30", help="seconds (%(default)s)")
    parser.add_argument("--overlaps", default="0,0.1,0.2,0.5", help="of a window (%(default)s)")
    parser.add_argument("--whole-statistics", action="store_true")
    options = parser.parse_args()
    model = load_model(find_model(options.model), device=torch.device("cpu"))
    waveform = joined(options.audio, model.grid.sample_rate, options.seconds)
    if options.whole_statistics:
        assert isinstance(model, EncoderModel), "an encoder of ours is needed to change its norms"
        fix_statistics(model, waveform)
    found = len(waveform) / model.grid.sample_rate
    print(f"{model.name}, {found:g} s, torch {torch.__version__}, relative L2 distance by layer")
    rows: list[list[str]] = []
    for window in map(float, options.windows.split(",")):
        for share in map(float, options.overlaps.split(",")):
            windowing = Windowing(
                model.grid,
                round(window * model.grid.sample_rate),
                round(share * window * model.grid.frame_rate),
            )
            distances = window_deviation(model.layers, waveform, windowing)
            seconds = windowing.overlap_frames / model.grid.frame_rate
            rows.append([f"{window:g}", f"{seconds:g}", *(f"{value:.3f}" for value in distances)])
    layers = [str(layer) for layer in range(len(rows[0]) - 2)]
    for row in (["window (s)", "overlap (s)", *layers], ["---"] * len(rows[0]), *rows):
        print(f"| {' | '.join(row)} |")


def fix_statistics(model: EncoderModel, waveform: Samples) -> None:
    """Gives every group norm the statistics that it takes from the whole waveform."""

    def fixed(norm: nn.GroupNorm, inputs: tuple[Tensor]) -> None:
        (x_BCT,) = inputs
        assert norm.num_groups == x_BCT.shape[1]
        mean_C1 = x_BCT[0].mean(dim=-1, keepdim=True)
        scale_C1 = (x_BCT[0].var(dim=-1, correction=0, keepdim=True) + norm.eps).rsqrt()
        weight_C1, bias_C1 = norm.weight[:, None], norm.bias[:, None]
        norm.forward = lambda x: (x - mean_C1) * scale_C1 * weight_C1 + bias_C1

    norms = [module for module in model.encoder.modules() if isinstance(module, nn.GroupNorm)]
    hooks = [norm.register_forward_pre_hook(fixed) for norm in norms]
    with torch.inference_mode():
        model.layers(torch.from_numpy(waveform)[None])
    for hook in hooks:
        hook.remove()


def joined(roots: list[Path], rate: int, seconds: float) -> Samples:
    wanted = round(seconds * rate)
    blocks: list[Samples] = []
    for source in scan_sources(roots, outside=Path("/nowhere")).sources:
        if sum(map(len, blocks)) < wanted:
            blocks.extend(mono_blocks(source, rate))
    return np.concatenate(blocks)[:wanted]


if __name__ == "__main__":
    main()
