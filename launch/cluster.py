"""Fits k-means labels from a corpus:  python launch/cluster.py CORPUS --features logmel

    python launch/cluster.py CORPUS --features logmel
    python launch/cluster.py CORPUS --features chroma
    python launch/cluster.py CORPUS --model RUN --layer 6
    python launch/cluster.py CORPUS --features logmel --stages 8

Streams the training clips once and writes one safetensors file with the centroids and how the
features are made, for `objective.targets.NAME.centroids`. --model clusters what a trained encoder
makes of the audio (HuBERT's second iteration); --stages fits a residual quantiser for a `mel_rvq`
target. The same command again continues an interrupted one
and does nothing after a finished one. docs/kmeans.md tells how to read the report.
"""

import argparse
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from etude.data.errors import InputError
from etude.launch.cli import interrupt_on, run

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from etude.data.shards import Corpus, Split
    from etude.models.frames import FrameGrid
    from etude.pretrain.clustering import ClusterReport
    from etude.pretrain.quantizer import FeatureQuantizer, FeatureSettings

_SPECTRA = {"logmel": (229, 0.085), "chroma": (264, 0.256)}
"""Bins of MERT-v0, and a window in seconds, rounded up to a power of two (chosen: the authors'
is unknown)."""

_CLUSTERS = {"logmel": 300, "chroma": 200, "encoder": 500}
"""Classes of MERT-v0, and of HuBERT base's second iteration."""

_RVQ_CLUSTERS = 1024
"""Classes of each stage, as EnCodec's."""


def main() -> int:
    """Reads the corpus, fits, writes."""
    arguments = _parse()
    interrupt_on(signal.SIGTERM)  # until there is something to save
    import torch

    from etude.data.progress import Progress
    from etude.data.shards import open_corpus
    from etude.pretrain.clustering import PartFile, check_enough, differences, fit_kmeans
    from etude.pretrain.quantizer import read_request, save_quantizer
    from etude.pretrain.stop import StopRequest

    corpus = open_corpus(arguments.corpus)
    settings = _settings(arguments, corpus)
    stages: int | None = arguments.stages
    name = f"{'kmeans' if stages is None else 'rvq'}-{settings.kind}.safetensors"
    out = arguments.out or corpus.root / name
    clusters = arguments.clusters or (_CLUSTERS[settings.kind] if stages is None else _RVQ_CLUSTERS)
    request = {
        "corpus": corpus.fingerprint,
        **settings.model_dump(mode="json", exclude_none=True),
        "clusters": clusters,
        "hours": arguments.hours,
        "iterations": arguments.iterations,
        "seed": arguments.seed,
        **({} if stages is None else {"stages": stages}),
    }
    part = PartFile(
        out.with_name(out.name.removesuffix(".safetensors") + ".part.safetensors"), request
    )
    if out.exists() and (made_for := read_request(out)) is not None:
        different = differences(made_for, request)
        if different:
            raise InputError(
                f"{out} is there already and was fitted to something else: "
                f"{'; '.join(different)}. Give another --out, or delete it: a run that was trained "
                "on its labels could not be continued."
            )
        part.remove()
        print(f"{out} is there already.")
        return 0

    clips = _Clips.of(
        corpus.split("train"),
        hours=arguments.hours,
        shortest=settings.grid.receptive_samples,
        seed=arguments.seed,
    )
    check_enough(clips.count_frames(settings.grid, enough=clusters), clusters)
    out.parent.mkdir(parents=True, exist_ok=True)
    with StopRequest(torch.device("cpu")) as stop:
        quantizer, report = fit_kmeans(
            clips,
            settings,
            clusters=clusters,
            iterations=arguments.iterations,
            seed=arguments.seed,
            stages=stages,
            corpus=corpus.fingerprint,
            device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
            part=part,
            stopped=lambda: stop.reason is not None,
            heard=Progress(settings.kind, len(clips), unit="clip").advance_to,
            progress=lambda message: print(message, file=sys.stderr, flush=True),
        )
        save_quantizer(quantizer, out, report=asdict(report), request=request)
        part.remove()
    print(_summary(out, quantizer, report))
    return 0


def _settings(arguments: argparse.Namespace, corpus: "Corpus") -> "FeatureSettings":
    """What is clustered, on the frames of the model that is to learn it."""
    from etude.models.config import EncoderConfig
    from etude.pretrain.config_file import load_config
    from etude.pretrain.quantizer import FeatureSettings, describe_encoder

    geometry = EncoderConfig(sample_rate=corpus.sample_rate)
    if arguments.config is not None:
        geometry = load_config(arguments.config).model
        if geometry.sample_rate != corpus.sample_rate:
            raise InputError(
                f"{arguments.config} is for {geometry.sample_rate} Hz, but {arguments.corpus} has "
                f"{corpus.sample_rate} Hz. Prepare the corpus with --sample-rate "
                f"{geometry.sample_rate}."
            )
    if arguments.model is None:
        bins, seconds = _SPECTRA[arguments.features]
        return FeatureSettings(
            kind=arguments.features,
            bins=arguments.bins or bins,
            n_fft=arguments.n_fft or 2 ** (round(seconds * corpus.sample_rate) - 1).bit_length(),
            sample_rate=corpus.sample_rate,
            conv_kernels=geometry.conv_kernels,
            conv_strides=geometry.conv_strides,
        )
    from etude.pretrain.starting import find_encoder

    settings = describe_encoder(find_encoder(arguments.model), layer=arguments.layer)
    if settings.sample_rate != corpus.sample_rate:
        raise InputError(
            f"the encoder in {arguments.model} hears {settings.sample_rate} Hz, but "
            f"{arguments.corpus} has {corpus.sample_rate} Hz. Prepare the corpus with "
            f"--sample-rate {settings.sample_rate}."
        )
    if arguments.config is not None and settings.grid != geometry.grid:
        raise InputError(
            f"the encoder in {arguments.model} has other frames (kernels "
            f"{list(settings.conv_kernels)}, strides {list(settings.conv_strides)}) than the model "
            f"of {arguments.config} (kernels {list(geometry.conv_kernels)}, strides "
            f"{list(geometry.conv_strides)}), which could not be trained on its labels."
        )
    return settings


@final
@dataclass(frozen=True)
class _Clips:
    """Clips of a split in the order in which they are heard."""

    split: "Split"
    numbers: "npt.NDArray[np.int64]"

    @classmethod
    def of(cls, split: "Split", *, hours: float | None, shortest: int, seed: int) -> "_Clips":
        """Random clips that make ``hours`` (all if not given), none shorter than a frame."""
        import numpy as np

        from etude.pretrain.random import derive

        generator = np.random.Generator(np.random.Philox(key=derive(seed, "clips")))
        order = generator.permutation(len(split))
        lengths = split.num_samples[order]
        order, lengths = order[lengths >= shortest], lengths[lengths >= shortest]
        limit = float("inf") if hours is None else hours * 3600 * split.corpus.sample_rate
        return cls(split, order[np.cumsum(lengths) - lengths < limit])

    def count_frames(self, grid: "FrameGrid", *, enough: int) -> int:
        """Frames of the clips, counted no further than ``enough``: it is known before hours pass
        whether there are."""
        frames = 0
        for clip in self.numbers:
            if frames >= enough:
                break
            frames += grid.num_frames(int(self.split.num_samples[clip]))
        return frames

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, position: int) -> "Tensor":
        import torch

        from etude.data.audio import decode

        waveform, _ = decode(self.split.read_audio_bytes(int(self.numbers[position])))
        return torch.from_numpy(waveform)[None]


def _summary(out: Path, quantizer: "FeatureQuantizer", report: "ClusterReport") -> str:
    settings, classes = quantizer.settings, quantizer.num_classes
    if settings.encoder is not None:
        what = f"layer {settings.encoder.layer} of {settings.encoder.folder}"
    else:
        what = f"{settings.kind} ({settings.bins} bins, window {settings.n_fft})"
    rows = {
        "frames": f"{report.frames:,} described, {report.sampled:,} of them clustered",
        "distance": f"{report.inertia:.3f} of the features' variance is left within classes",
        "in use": f"{report.used} of {classes}; {report.rare} have less than a tenth of an equal "
        "share",
        "largest": f"{report.largest_share:.2%} of the frames; an equal share is {1 / classes:.2%}",
        "entropy": f"{report.entropy:.2f} nats, perplexity {report.perplexity:.0f}",
        "content": quantizer.content_hash,
    }
    lines = [f"  {name:<9} {text}" for name, text in rows.items()]
    title = f"{out}: {classes} classes of {what}"
    if quantizer.stages is not None:
        title += f", {quantizer.stages} stages; but for `distance`, of the last stage:"
    return "\n".join([title, *lines])


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpus", type=Path, help="folder made by launch/prepare.py")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--features", choices=sorted(_SPECTRA), help="spectra, as MERT-v0 has them")
    what.add_argument("--model", type=Path, help="run, checkpoint or encoder folder to cluster")
    parser.add_argument(
        "--layer", type=int, help="of --model: 0 is the input of the first layer, 1 its output"
    )
    parser.add_argument(
        "--clusters",
        type=int,
        help="classes ({logmel} for logmel, {chroma} for chroma, {encoder} for --model)".format(
            **_CLUSTERS
        ),
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="file to write; CORPUS/kmeans-FEATURES.safetensors if not given (with --stages: rvq-)",
    )
    parser.add_argument(
        "--config", type=Path, help="run whose frames to label; the released models' if not given"
    )
    parser.add_argument(
        "--stages",
        type=int,
        help="residual quantiser of so many stages, each of --clusters classes "
        f"({_RVQ_CLUSTERS} if not given)",
    )
    parser.add_argument("--bins", type=int, help="mel bands (229) or chroma bins (264)")
    parser.add_argument("--n-fft", type=int, help="window in samples, a power of two")
    parser.add_argument("--hours", type=float, help="audio to hear; all of it if not given")
    parser.add_argument("--iterations", type=int, default=20, help="Lloyd iterations")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for name, least in (
        ("clusters", 1),
        ("iterations", 1),
        ("bins", 2),
        ("n_fft", 64),
        ("layer", 0),
        ("stages", 1),
    ):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise InputError(
                f"--{name.replace('_', '-')} must be at least {least}, but is {value}."
            )
    if (arguments.model is None) != (arguments.layer is None):
        raise InputError("--model and --layer belong together: which encoder, and what of it.")
    if arguments.model is not None and (arguments.bins or arguments.n_fft):
        raise InputError("--bins and --n-fft are about --features: an encoder has its own width.")
    return arguments


if __name__ == "__main__":
    run(main)
