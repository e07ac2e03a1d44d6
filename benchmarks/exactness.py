"""The fast path against the plain one: one step in float32, and 200 updates from one seed.

    OMP_NUM_THREADS=1 python benchmarks/exactness.py [--updates 200] [--plot docs/exactness.svg]

`plain` is fairseq2's front end and nnAudio's CQT, `fast` what trains by default. First one step of
MERT at 95M on two crops: relative differences of loss, gradient and CQT. Then a small model is
trained on demo music by both, with the same seed, crops, masks and dropout 0, and by `plain` a
second time with the crops of every batch in another order, which changes nothing but the order of
sums: two paths that compute the same drift apart no faster than that.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from etude.data.batch import AudioBatch
from etude.data.demo.render import render_track
from etude.models.config import EncoderConfig
from etude.models.encoder import Encoder
from etude.models.spectral import ConstantQ
from etude.pretrain.masked_prediction import MaskedPrediction
from etude.pretrain.targets.base import Target
from etude.pretrain.targets.codec import CodecTarget
from etude.pretrain.targets.cqt import CqtTarget

sys.path.insert(0, str(Path(__file__).parent))
from step_ways.common import Problem  # noqa: E402
from step_ways.ours import build_objective  # noqa: E402

RATE, SECONDS, CROPS, BATCH = 16_000, 2, 48, 4
SMALL: dict[str, Any] = {
    "sample_rate": RATE,
    "conv_dims": (64,) * 7,
    "dim": 96,
    "ffn_dim": 256,
    "heads": 4,
    "layers": 3,
    "position_kernel": 32,
    "position_groups": 4,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "projection_dropout": 0.0,
    "layer_drop": 0.0,
}
CQT: dict[str, Any] = {"bins": 84, "bins_per_octave": 12, "fmin": 32.7}
NAMES = {"plain": "plain", "fast": "fast", "reordered": "plain, sums in another order"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    one_step()
    losses = train(options.updates)
    apart = {
        name: (losses[name] - losses["plain"]).abs() / losses["plain"]
        for name in ("fast", "reordered")
    }
    print(
        f"\n{options.updates} updates of the small model; the loss from {losses['plain'][0]:.4f} "
    )
    print(f"to {losses['plain'][-1]:.4f}; relative difference of the loss to `plain`:\n")
    print("| | update 1 | 50 | 100 | last | mean of the last 20 |\n|---|---|---|---|---|---|")
    for name, values in apart.items():
        at = [values[i] for i in (0, min(49, len(values) - 1), min(99, len(values) - 1), -1)]
        shown = " | ".join(f"{float(v):.1e}" for v in [*at, values[-20:].mean()])
        print(f"| {NAMES[name]} | {shown} |")
    ratio = apart["fast"][-20:].mean() / apart["reordered"][-20:].mean()
    print(f"\nAt the end `fast` is {ratio:.2f} times as far from `plain` as `plain` from itself.")
    if options.plot:
        plot(losses, apart, options.plot)


def one_step() -> None:
    """Loss, gradient and CQT of the two paths at 95M, in float32."""
    problem = Problem(
        family="mert", size="95M", crops=2, seconds=5.0, precision="fp32", device="cpu"
    )
    waveform = torch.stack([torch.from_numpy(music(i, 24_000, 5)) for i in range(2)])
    batch = AudioBatch(
        waveform,
        torch.arange(2),
        torch.tensor(0),
        torch.tensor(0),
        codes={"encodec_24khz": problem.codes()},
    )
    found = {}
    for impl in ("plain", "fast"):
        objective = build_objective(problem, impl)
        loss = objective(batch).loss
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in objective.parameters() if p.requires_grad])
        cqt = objective.targets["cqt"]
        assert isinstance(cqt, CqtTarget)
        found[impl] = loss.detach(), gradient, cqt.transform(waveform)
    print("MERT at 95M, 2 crops, float32: relative differences of fast to plain")
    for what, fast, plain in zip(
        ("loss", "gradient", "CQT"), found["fast"], found["plain"], strict=True
    ):
        print(f"  {what:<9}{float((fast - plain).norm() / plain.norm()):.1e}")


def train(updates: int) -> dict[str, Tensor]:
    """Losses of every update on each path."""
    crops = torch.stack([torch.from_numpy(music(i, RATE, SECONDS)) for i in range(CROPS)])
    labels = loudest_bins(crops)
    return {
        "plain": torch.tensor(list(losses("plain", crops, labels, updates, lambda ids: ids))),
        "fast": torch.tensor(list(losses("fast", crops, labels, updates, lambda ids: ids))),
        "reordered": torch.tensor(
            list(losses("plain", crops, labels, updates, lambda ids: ids.flip(0)))
        ),
    }


def losses(
    impl: str,
    crops: Tensor,
    labels: Tensor,
    updates: int,
    order: Callable[[Tensor], Tensor],
) -> Iterator[float]:
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig.model_validate({**SMALL, "impl": impl}))
    objective = small_objective(encoder, "fft" if impl == "fast" else "CQT1992v2").train()
    optimizer = torch.optim.AdamW(objective.parameters(), betas=(0.9, 0.98), eps=1e-6)
    for update in range(updates):
        # Masks follow from ids, so that a crop keeps its own in any order.
        ids = order(torch.arange(update * BATCH, (update + 1) * BATCH))
        rows = ids % len(crops)
        batch = AudioBatch(
            crops[rows],
            ids,
            torch.tensor(update),
            torch.tensor(0),
            codes={"labels": labels[rows]},
        )
        loss = objective(batch).loss
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 5e-4 * min(1.0, (update + 1) / 20)
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad()
        yield float(loss.detach())


def small_objective(encoder: Encoder, algorithm: Any) -> MaskedPrediction:
    dim = encoder.config.dim
    targets: dict[str, Target] = {
        "labels": CodecTarget(
            dim,
            codebooks=2,
            codebook_size=CQT["bins"],
            final_dim=32,
            temperature=0.1,
            stored="labels",
        ),
        "cqt": CqtTarget(
            ConstantQ(encoder.grid, scale="linear", algorithm=algorithm, **CQT),
            dim,
            bins=CQT["bins"],
        ),
    }
    return MaskedPrediction(
        encoder,
        targets,
        weights=dict.fromkeys(targets, 1.0),
        seed=0,
        mask_prob=0.8,
        mask_span=5,
        feature_penalty=10.0,
    )


def loudest_bins(crops: Tensor) -> Tensor:
    """Labels (N, F, 2): the loudest bin of every frame of the CQT, and its octave."""
    grid = EncoderConfig.model_validate(SMALL).grid
    transform = ConstantQ(grid, scale="linear", algorithm="CQT1992v2", **CQT)
    bins = transform(crops).argmax(dim=2)
    return torch.stack([bins, bins // CQT["bins_per_octave"]], dim=2)


def music(index: int, rate: int, seconds: int) -> Any:
    track = render_track(index, seed=0, kind="mix", seconds=max(8, seconds), sample_rate=rate)
    mono = track.waveform.mean(axis=0)
    return mono[: seconds * rate].astype("float32")


def plot(losses: dict[str, Tensor], apart: dict[str, Tensor], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    # Text as text and no dates: the same figures give the same file.
    pyplot.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "etude"})
    figure, (top, bottom) = pyplot.subplots(2, 1, figsize=(7, 5), sharex=True)
    updates = range(1, len(losses["plain"]) + 1)
    for name, style in (("plain", "-"), ("fast", "--")):
        top.plot(updates, losses[name], style, label=NAMES[name])
    for name, values in apart.items():
        bottom.semilogy(updates, values.clamp_min(1e-9), label=NAMES[name])
    top.set_ylabel("loss per masked frame")
    bottom.set_ylabel("relative difference to plain")
    bottom.set_xlabel("update")
    for axes in (top, bottom):
        axes.legend()
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
