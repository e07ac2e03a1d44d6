"""What forward keeps for backward, counted on the real objective, part by part.

    python tests/saved_bytes.py CONFIG [key.path=value ...] [--crops 1]

prints it beside the estimate of ``pretrain/memory.py``, whose constants are read off here: change
one size of the model at a time, and see which part grows by how much. No corpus is read; labels are
random. A crop of the 95M takes seconds and 3 GB.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from training_parts import noise  # noqa: E402

from etude.data.batch import AudioBatch  # noqa: E402
from etude.data.plan import BatchShare  # noqa: E402
from etude.pretrain.assemble import build_objective  # noqa: E402
from etude.pretrain.config import CodecTargetConfig, Config, KmeansTargetConfig  # noqa: E402
from etude.pretrain.config_file import load_config  # noqa: E402
from etude.pretrain.inputs import Inputs  # noqa: E402
from etude.pretrain.masked_prediction import MaskedPrediction  # noqa: E402
from etude.pretrain.memory import Memory, count_parameters, estimate_memory  # noqa: E402
from etude.pretrain.parts import OTHER, watched  # noqa: E402
from etude.pretrain.quantizer import FeatureQuantizer, FeatureSettings  # noqa: E402


def classes_of(config: Config, number: int = 64) -> dict[str, int]:
    kinds = (CodecTargetConfig, KmeansTargetConfig)
    targets = config.objective.targets.items()
    return {name: number for name, target in targets if isinstance(target, kinds)}


def objective_of(config: Config, *, crops: int = 1) -> MaskedPrediction:
    """The objective of a configuration, built as a run builds it, but from no corpus."""
    classes = classes_of(config)
    kmeans = [n for n, t in config.objective.targets.items() if isinstance(t, KmeansTargetConfig)]
    inputs = Inputs(
        corpora=(),
        train=None,
        valid=None,
        quantizers={name: quantizer(config, classes[name]) for name in kmeans},
        tokens=(),
        codecs={},
        classes=classes,
        share=BatchShare(crops, crops, 0, 1),
        choice="",
        start=None,
        notes=(),
    )
    return build_objective(config, inputs).train()


def quantizer(config: Config, classes: int) -> FeatureQuantizer:
    grid = config.model.grid
    settings = FeatureSettings(
        kind="logmel",
        bins=20,
        n_fft=1024,
        sample_rate=grid.sample_rate,
        conv_kernels=tuple(grid.kernels),
        conv_strides=tuple(grid.strides),
    )
    centroids = torch.randn(classes, 20, generator=torch.Generator().manual_seed(0))
    return FeatureQuantizer(
        settings, centroids=centroids, mean=torch.zeros(20), scale=torch.ones(20)
    )


def batch_of(config: Config, *, crops: int) -> AudioBatch:
    codes = {
        target.codec: torch.randint(
            classes_of(config)[name],
            (crops, config.model.grid.num_frames(config.crop_samples) + 1, target.codebooks),
            generator=torch.Generator().manual_seed(1),
        )
        for name, target in config.objective.targets.items()
        if isinstance(target, CodecTargetConfig)
    }
    waveform = noise(crops, config.crop_samples)
    return AudioBatch(waveform, torch.arange(crops), torch.tensor(0), torch.tensor(0), codes)


def saved_bytes(objective: MaskedPrediction, batch: AudioBatch, *, bf16: bool) -> Counter[str]:
    """Bytes of all memory that autograd holds after forward, parameters aside, by part."""
    own = {t.untyped_storage().data_ptr() for t in (*objective.parameters(), *objective.buffers())}
    found: Counter[str] = Counter()
    held: dict[int, Tensor] = {}
    parts = [OTHER]

    @contextmanager
    def inside(part: str) -> Iterator[None]:
        parts.append(part)
        yield
        parts.pop()

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and storage.data_ptr() not in held:
            held[storage.data_ptr()] = tensor  # so that its address is not another's meanwhile
            found[parts[-1]] += storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        watched(objective, inside),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        loss = objective(batch).loss
    del loss
    return found


def estimate(config: Config, *, crops: int) -> Memory:
    return estimate_memory(
        config,
        count_parameters(config, classes_of(config)),
        micro_batch=crops,
        ranks=1,
        stage=0,
        device="cpu",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--crops", type=int, default=1)
    options = parser.parse_intermixed_args()
    config = load_config(options.config, options.overrides)
    objective, batch = objective_of(config), batch_of(config, crops=options.crops)
    found = saved_bytes(objective, batch, bf16=config.train.precision == "bf16")
    for part, count in found.items():
        print(f"{part:<14}{count / 1e6:>10.2f} MB")
    memory = estimate(config, crops=options.crops)
    print(f"{'all':<14}{found.total() / 1e6:>10.2f} MB")
    print(f"{'estimated':<14}{(memory.copies + memory.activations) / 1e6:>10.2f} MB")


if __name__ == "__main__":
    main()
