"""Does one export mean the same in every transformers? Old, current, and the newest on PyPI.

    python tests/compat/run.py [VERSION ...]          (needs pip's index; `make compat` runs it)

Small random encoders of every geometry are exported in every format once. Each version of
transformers is laid over the same environment (`pip install --target`) in `.compat/VERSION`, loads
the folders offline, and must give the training encoder's hidden states.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from etude.models.config import EncoderConfig
from etude.models.encoder import Encoder
from etude.models.hf.card import CardFacts
from etude.models.hf.config import Format
from etude.models.hf.export import export_encoder

ROOT = Path(__file__).parents[2]
OVERLAYS = ROOT / ".compat"
VERSIONS = ("4.38.2", "4.57.6", "newest")

SMALL = {
    "conv_dims": (16,) * 7,
    "dim": 32,
    "ffn_dim": 48,
    "heads": 4,
    "layers": 2,
    "position_kernel": 15,
    "position_groups": 4,
}
MUSIC2VEC = {"conv_norm": "layer", "position_depth": 5, "normalize": True, "sample_rate": 16_000}
GEOMETRIES: dict[str, tuple[dict[str, object], tuple[Format, ...]]] = {
    "mert-95m": ({"position_kernel": 16}, ("hubert", "mert")),
    "mert-330m": ({"norm": "pre"}, ("hubert", "mert")),
    "layer-norm": ({"conv_norm": "layer", "normalize": True}, ("hubert", "mert")),
    "music2vec": (MUSIC2VEC, ("data2vec",)),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("versions", nargs="*", default=VERSIONS, metavar="VERSION")
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        export_all(Path(folder))
        for version in parser.parse_args().versions:
            done = subprocess.run(
                [sys.executable, Path(__file__).with_name("load.py"), folder],
                env={**os.environ, "PYTHONPATH": str(overlay(version)), "HF_HUB_OFFLINE": "1"},
            )
            failed += [version] * (done.returncode != 0)
    if failed:
        print(f"error: exports mean something else in transformers {', '.join(failed)}.")
    return 1 if failed else 0


def export_all(folder: Path) -> None:
    """One folder per geometry and format, with audio and what the encoder makes of it."""
    generator = torch.Generator().manual_seed(0)
    for name, (settings, formats) in GEOMETRIES.items():
        torch.manual_seed(1)
        encoder = Encoder(EncoderConfig.model_validate({**SMALL, **settings})).eval()
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        waveform = 0.1 * torch.randn(2, 24_000, generator=generator)
        lengths = [24_000, 15_000]
        with torch.inference_mode():
            full = encoder(waveform).hidden_states
            padded = encoder(waveform, num_samples=lengths).hidden_states
        expected: dict[str, Tensor] = {"waveform": waveform, "lengths": torch.tensor(lengths)}
        expected |= {f"full{i}": state.clone() for i, state in enumerate(full)}
        expected |= {f"padded{i}": state.clone() for i, state in enumerate(padded)}
        card = CardFacts(name=name, paradigm="none", trained_on=date.today())
        for format in formats:
            export_encoder(encoder, folder / f"{name}-{format}", format=format, card=card)
            save_file(expected, folder / f"{name}-{format}.safetensors")


def overlay(version: str) -> Path:
    """The folder with this version, installed if it is not there."""
    folder = OVERLAYS / version
    if not (folder / "transformers").is_dir():
        wanted = "transformers" if version == "newest" else f"transformers=={version}"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", folder, wanted]
        subprocess.run(command, check=True)
    return folder


if __name__ == "__main__":
    raise SystemExit(main())
