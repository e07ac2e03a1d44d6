"""Exports at the released sizes: every hidden state, on music, at 5 s and 30 s, alone and padded.

    python tests/compat/full_size.py [95m 330m music2vec RUN ...]     (minutes, gigabytes)

Random weights at the three geometries, or the newest encoder of a run. Errors are in units of what
is tolerated, 1e-4 * max(1, largest value) per hidden state.
"""

import argparse
import tempfile
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

from etude.data.demo.render import render_track
from etude.models.config import EncoderConfig
from etude.models.encoder import Encoder
from etude.models.frontend import normalize_waveform
from etude.models.hf.card import CardFacts
from etude.models.hf.config import Format, natural_format
from etude.models.hf.export import export_encoder
from etude.models.hf.load import load_model
from etude.models.weights import load_encoder
from etude.pretrain.starting import find_encoder

TOLERANCE = 1e-4
MUSIC2VEC = {
    "sample_rate": 16_000,
    "normalize": True,
    "conv_norm": "layer",
    "position_depth": 5,
    "position_kernel": 95,
}
SIZES: dict[str, dict[str, object]] = {
    "95m": {},
    "330m": {"layers": 24, "dim": 1024, "ffn_dim": 4096, "heads": 16, "norm": "pre"},
    "music2vec": MUSIC2VEC,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("which", nargs="*", default=list(SIZES), metavar="SIZE_OR_RUN")
    worst = 0.0
    for which in parser.parse_args().which:
        encoder = build(which)
        natural = natural_format(encoder.config)
        formats: tuple[Format, ...] = (natural, "mert") if natural == "hubert" else (natural,)
        for format in formats:
            for case, error in check(encoder, format).items():
                print(f"{which}  {format:<9} {case:<12} {error:.1e}", flush=True)
                worst = max(worst, error if error == error else float("inf"))
    return 0 if worst <= 1 else 1


def build(which: str) -> Encoder:
    if which not in SIZES:
        return load_encoder(find_encoder(Path(which)))
    torch.manual_seed(0)
    return Encoder(EncoderConfig.model_validate(SIZES[which])).eval()


def check(encoder: Encoder, format: Format) -> dict[str, float]:
    rate = encoder.config.sample_rate
    rendered = render_track(0, seed=7, kind="mix", seconds=31.0, sample_rate=rate)
    track = torch.as_tensor(rendered.waveform, dtype=torch.float32).mean(dim=0)
    five, thirty = round(5 * rate), round(30 * rate)
    with tempfile.TemporaryDirectory() as folder:
        card = CardFacts(name="check", paradigm="none", trained_on=date.today())
        export_encoder(encoder, Path(folder) / "out", format=format, card=card)
        model = load_model(Path(folder) / "out", shipped=format == "mert")
    padded = torch.stack([track[:five], track[five : 2 * five]])
    padded[1, 3 * rate :] = 0
    return {
        "5 s": compare(encoder, model, track[None, :five], None),
        "30 s": compare(encoder, model, track[None, :thirty], None),
        "padded": compare(encoder, model, padded, [five, 3 * rate]),
    }


@torch.inference_mode()
def compare(encoder: Encoder, model: object, waveform: Tensor, lengths: list[int] | None) -> float:
    counts = None if lengths is None else torch.tensor(lengths)
    heard = normalize_waveform(waveform, counts) if encoder.config.normalize else waveform
    mask = None
    if counts is not None:
        mask = (torch.arange(waveform.shape[1]) < counts[:, None]).long()
    assert callable(model)
    ours = encoder(waveform, num_samples=lengths).hidden_states
    theirs = model(heard, attention_mask=mask, output_hidden_states=True).hidden_states
    worst = 0.0
    for one, other in zip(ours, theirs, strict=True):
        for row, samples in enumerate(lengths or [waveform.shape[1]] * len(waveform)):
            count = encoder.grid.num_frames(samples)
            error = float((one[row, :count] - other[row, :count]).abs().max())
            worst = max(worst, error / (TOLERANCE * max(1.0, float(one.abs().max()))))
    return worst


if __name__ == "__main__":
    raise SystemExit(main())
