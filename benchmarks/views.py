"""What data2vec 2.0's options save: cost of a masked view of a crop, of several, and of skipping.

    OMP_NUM_THREADS=1 python benchmarks/views.py [CONFIG] [--seconds S] [--views V] [--rounds N]

Forward and backward of the objective without an optimizer, in float32, on a chord of notes; one
process, ways in random order within each round, process CPU time, median over rounds. The masks of
all ways are those of CONFIG.
"""

import argparse
import random
import statistics
import time
from pathlib import Path

import torch

from etude.data.batch import AudioBatch
from etude.models.encoder import Encoder
from etude.pretrain.config import Config, TeacherTargetConfig
from etude.pretrain.config_file import load_config
from etude.pretrain.decoder import ConvDecoder
from etude.pretrain.masked_prediction import MaskedPrediction
from etude.pretrain.schedules import ramp
from etude.pretrain.targets.teacher import TeacherTarget

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "config", type=Path, nargs="?", default=ROOT / "configs/ablations/music2vec_views.yaml"
    )
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    config = load_config(options.config, [])
    ways = {
        "1 view, all frames (data2vec)": objective(config, views=1, skips=False),
        f"{options.views} views, all frames": objective(config, views=options.views, skips=False),
        "1 view, masked frames skipped": objective(config, views=1, skips=True),
        f"{options.views} views, skipped (2.0)": objective(config, views=options.views, skips=True),
    }
    batch = chord(config, seconds=options.seconds)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(options.rounds + 1):
        for name in random.sample(list(ways), len(ways)):
            way = ways[name].train()
            way.zero_grad()
            start = time.process_time()
            way(batch).loss.backward()
            if round_:  # the first warms up
                seconds[name].append((time.process_time() - start) / way.views)
    frames = config.model.grid.num_frames(batch.waveform.shape[1])
    masked = ways["1 view, all frames (data2vec)"].mask(batch, frames).index_BM.shape[1]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), ", end="")
    print(f"{options.seconds:g} s, {masked} of {frames} frames masked, {options.rounds} rounds")
    print("| way | CPU ms per crop and view (min - max) | of data2vec's |")
    print("|---|---|---|")
    base = statistics.median(seconds["1 view, all frames (data2vec)"])
    for name, values in seconds.items():
        median = statistics.median(values)
        spread = f"{1e3 * median:.0f} ({1e3 * min(values):.0f} - {1e3 * max(values):.0f})"
        print(f"| {name} | {spread} | {median / base:.2f} |")


def objective(config: Config, *, views: int, skips: bool) -> MaskedPrediction:
    """The objective of ``config`` with its teacher alone."""
    torch.manual_seed(0)
    encoder = Encoder(config.model)
    (target,) = config.objective.targets.values()
    assert isinstance(target, TeacherTargetConfig)
    teacher = TeacherTarget(
        encoder,
        top_layers=target.top_layers,
        feature=target.feature,
        norm=target.layer_norm,
        decay=ramp(target.decay, target.end_decay, steps=target.anneal_steps),
        average_positions=False,
        predictor_dim=0,
        distance="mse",
        pooled=False,
        hears_clean=False,
        sees_other_view=False,
    )
    made = config.objective.decoder
    assert made is not None
    decoder = ConvDecoder(
        config.model.dim, inner=made.dim, layers=made.layers, kernel=made.kernel, groups=made.groups
    )
    return MaskedPrediction(
        encoder,
        {"teacher": teacher},
        weights={"teacher": 1.0},
        seed=0,
        mask_prob=config.objective.mask.prob,
        mask_span=config.objective.mask.span_frames,
        views=views,
        decoder=decoder if skips else None,
    )


def chord(config: Config, *, seconds: float) -> AudioBatch:
    """One crop of three notes."""
    rate = config.model.sample_rate
    time_T = torch.arange(round(seconds * rate)) / rate
    notes = torch.tensor([220.0, 277.18, 329.63])
    waveform = 0.2 * torch.sin(2 * torch.pi * notes[:, None] * time_T).sum(dim=0)
    return AudioBatch(waveform[None], torch.tensor([0]), torch.tensor(0), torch.tensor(0))


if __name__ == "__main__":
    main()
