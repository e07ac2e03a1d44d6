"""Features of frames and their k-means quantiser, as one module and one file.

    logmel, chroma    spectra (MERT-v0), which follow from the settings alone
    encoder           hidden states of one layer of a trained encoder (HuBERT's second iteration,
                      Hsu et al. 2021), read from the folder that the file names

A quantiser file is safetensors: ``centroids`` (K, D), or (S, K, D) where S stages quantise what the
stages before them left over, ``mean`` and ``scale`` (D,) in float32. Its metadata hold the settings
of the features, what was asked for, the usage report, the corpus' fingerprint and a hash of the
content. ``launch/cluster.py`` writes it, the k-means and the mel_rvq target read it.
"""

import hashlib
import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from etude.data.files import file_sha256, write_bytes
from etude.models.frames import FrameGrid
from etude.models.precision import plain_float32
from etude.models.spectral import Chroma, LogMel
from etude.pretrain.errors import ConfigError

if TYPE_CHECKING:
    # Encoders are imported where one is used: fairseq2 takes seconds, and spectra do without.
    from etude.models.context import EncoderOutput
    from etude.models.encoder import Encoder

FORMAT = "etude-kmeans-1"

PIECE_SECONDS = 30.0
"""Longest piece of audio that an encoder is given at once: attention's memory grows with its
square."""

_ROWS = 16_384
"""Frames that are compared with all centroids at once: 20 MB for 300 of them."""


class EncoderSource(BaseModel):
    """Whose hidden states are clustered."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    folder: Path
    """Folder with ``encoder.json`` and ``encoder.safetensors``."""

    layer: Annotated[int, Field(ge=0)]
    """Which of ``EncoderOutput.hidden_states``: 0 is the input of the first layer."""

    weights_sha256: str
    """Hash of ``encoder.safetensors``."""

    config_sha256: str
    """Hash of ``encoder.json``: the same weights with other settings are another encoder."""


class FeatureSettings(BaseModel):
    """How frames are described before they are clustered."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["logmel", "chroma", "encoder"]
    """Log-mel bands (timbre and level), chroma (harmony), or what a trained encoder makes of it."""

    bins: Annotated[int, Field(ge=2)]
    """Mel bands or chroma bins per octave (MERT-v0: 229 and 264), or the encoder's width."""

    n_fft: Annotated[int, Field(ge=64)] | None = None
    """Window in samples; an encoder has none."""

    sample_rate: Annotated[int, Field(ge=1)]
    """Rate of the audio the features are made of."""

    conv_kernels: tuple[int, ...]
    """The encoder's convolutions, which set where frames lie."""

    conv_strides: tuple[int, ...]
    """Their strides."""

    encoder: EncoderSource | None = None
    """For kind ``encoder`` alone."""

    @model_validator(mode="after")
    def _check_kind(self) -> "FeatureSettings":
        learned = self.kind == "encoder"
        if learned != (self.encoder is not None) or learned != (self.n_fft is None):
            raise ValueError(
                f"kind {self.kind} needs {'encoder and no n_fft' if learned else 'n_fft alone'}"
            )
        return self

    @property
    def grid(self) -> FrameGrid:
        """The frame grid the labels are made for."""
        return FrameGrid(self.sample_rate, self.conv_kernels, self.conv_strides)


def describe_encoder(folder: Path, *, layer: int) -> FeatureSettings:
    """Settings of the hidden states of ``layer`` of the encoder in ``folder``.

    :raises ConfigError: if there is no readable encoder, or it has no such layer.
    """
    from etude.models.weights import CONFIG_NAME, WEIGHTS_NAME, load_encoder_config

    try:
        config = load_encoder_config(folder)
        source = EncoderSource(
            folder=folder.resolve(),
            layer=layer,
            weights_sha256=file_sha256(folder / WEIGHTS_NAME),
            config_sha256=file_sha256(folder / CONFIG_NAME),
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"the encoder in {folder} cannot be used: {error}") from error
    if layer > config.layers:
        raise ConfigError(
            f"layer {layer} was asked for, but the encoder in {folder} has {config.layers} layers: "
            f"take 0 (input of the first layer) to {config.layers}."
        )
    return FeatureSettings(
        kind="encoder",
        bins=config.dim,
        sample_rate=config.sample_rate,
        conv_kernels=config.conv_kernels,
        conv_strides=config.conv_strides,
        encoder=source,
    )


class EncoderFeatures(nn.Module):
    """Hidden states of one layer of a frozen encoder, (B, T) -> (B, F, D).

    The encoder is kept in a tuple, where ``nn.Module`` does not find it. Hence it is in nobody's
    parameters, buffers or ``state_dict()``: no optimizer moves it, no checkpoint carries it, DDP
    does not broadcast it before every forward pass, and ``train()`` of the module around it does
    not switch its dropout on. Nor does ``to()`` move it: it follows the waveform to its device.

    Audio longer than ``PIECE_SECONDS`` is cut into pieces of equal numbers of frames; each frame
    still sees its own samples, but attention, position and group norm end at a piece's edge.

    :param encoder: becomes part of this; layers above ``layer`` are taken away.
    :param layer: which of ``EncoderOutput.hidden_states``.
    """

    def __init__(self, encoder: "Encoder", *, layer: int) -> None:
        super().__init__()
        # In a pre-norm model the last hidden state alone has passed the final norm.
        self._is_last = layer == len(encoder.layers)
        encoder.layers = encoder.layers[:layer]
        self._held = (encoder.float().eval().requires_grad_(False),)

    @torch.no_grad()
    def forward(self, waveform: Tensor) -> Tensor:
        """Hidden states in float32, whatever the precision around."""
        encoder = self._held[0].to(waveform.device)
        grid = encoder.grid
        frames = grid.num_frames(waveform.shape[-1])
        pieces = -(-frames // grid.num_frames(round(PIECE_SECONDS * grid.sample_rate)))
        edges = [frames * piece // pieces for piece in range(pieces + 1)]
        made = []
        with plain_float32(waveform.device):
            for first, end in pairwise(edges):
                # Up to the audio's own end: samples behind the last frame count in a group norm.
                samples = (end - 1) * grid.hop_samples + grid.receptive_samples
                stop = None if end == frames else samples
                made.append(self._states(waveform[..., first * grid.hop_samples : stop]))
        return torch.cat(made, dim=1)

    def _states(self, waveform: Tensor) -> Tensor:
        output: EncoderOutput = self._held[0](waveform.float())
        if self._is_last:
            return output.last
        return output.layers[-1].hidden if output.layers else output.embedded


def build_features(settings: FeatureSettings) -> LogMel | Chroma | EncoderFeatures:
    """Returns the module that computes the features, (B, T) -> (B, F, bins).

    :raises ConfigError: if an encoder's files are not there, or not those of the settings.
    """
    if settings.encoder is not None:
        return _load_features(settings.encoder)
    assert settings.n_fft is not None
    kind = LogMel if settings.kind == "logmel" else Chroma
    return kind(settings.grid, bins=settings.bins, n_fft=settings.n_fft)


def _load_features(source: EncoderSource) -> EncoderFeatures:
    from etude.models.weights import CONFIG_NAME, WEIGHTS_NAME, load_encoder

    wanted = {CONFIG_NAME: source.config_sha256, WEIGHTS_NAME: source.weights_sha256}
    for name, sha256 in wanted.items():
        path = source.folder / name
        if not path.is_file():
            raise ConfigError(
                f"the labels are those of an encoder whose {path} is not there any more. Put it "
                "back there (a link will do), or fit the labels anew with launch/cluster.py."
            )
        found = file_sha256(path)
        if found != sha256:
            raise ConfigError(
                f"{path} is not the file that the labels were made with (sha256 {found[:12]}, then "
                f"{sha256[:12]}). Put that one back, or fit the labels anew with launch/cluster.py."
            )
    try:
        return EncoderFeatures(load_encoder(source.folder), layer=source.layer)
    except ValueError as error:
        raise ConfigError(f"the encoder in {source.folder} cannot be used: {error}") from error


class FeatureQuantizer(nn.Module):
    """Nearest-centroid labels of standardised features, (B, T) -> int64 (B, F).

    With several stages (a residual vector quantiser) the labels are (B, F, S): each stage's nearest
    centroid to what the centroids before it left over.

    :param centroids: (K, D), or (S, K, D).
    :param corpus: fingerprint of the corpus it was fitted to; ``None`` if that is not known.
    :param features: what ``build_features(settings)`` returns, if it is there already.
    """

    centroids: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        settings: FeatureSettings,
        *,
        centroids: Tensor,
        mean: Tensor,
        scale: Tensor,
        corpus: str | None = None,
        features: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.corpus = corpus
        self.features = features or build_features(settings)
        # Not in checkpoints: the quantiser's file is an input of the run, named in its config.
        self.register_buffer("centroids", centroids, persistent=False)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    @property
    def num_classes(self) -> int:
        """Number of clusters (of each stage)."""
        return self.centroids.shape[-2]

    @property
    def stages(self) -> int | None:
        """Number of stages of a residual quantiser; ``None`` for plain labels."""
        return self.centroids.shape[0] if self.centroids.ndim == 3 else None

    @property
    def content_hash(self) -> str:
        """sha256 over what decides the labels: settings, centroids, mean and scale.

        An encoder counts by the hashes of its files, not by where it lies.
        """
        settings = self.settings.model_dump(
            mode="json", exclude_none=True, exclude={"encoder": {"folder"}}
        )
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for name, tensor in self._tensors().items():
            digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.numpy().astype("<f4").tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def forward(self, waveform: Tensor) -> Tensor:
        """Label of every frame; float32 throughout, so that bf16 training has the same labels."""
        with plain_float32(waveform.device):
            return self.assign(self.features(waveform))

    def encode(self, waveform: Tensor) -> Tensor:
        """Labels of a residual quantiser as the tokens of a codec: (B, T) to int64 (B, F, S)."""
        assert self.stages is not None
        labels: Tensor = self(waveform)
        return labels

    def assign(self, features: Tensor) -> Tensor:
        """``features`` (…, D), not yet standardised, to labels (…), or (…, S) of S stages."""
        left = ((features - self.mean) / self.scale).flatten(0, -2)
        if self.centroids.ndim == 2:
            return nearest_centroid(left, self.centroids).view(features.shape[:-1])
        labels = []
        for centroids in self.centroids:
            labels.append(nearest_centroid(left, centroids))
            left = left - centroids[labels[-1]]
        return torch.stack(labels, dim=-1).view(*features.shape[:-1], len(labels))

    def _tensors(self) -> dict[str, Tensor]:
        buffers = {"centroids": self.centroids, "mean": self.mean, "scale": self.scale}
        return {name: tensor.float().cpu().contiguous() for name, tensor in buffers.items()}


def nearest_centroid(points: Tensor, centroids: Tensor) -> Tensor:
    """Index of the nearest of ``centroids`` (K, D) for each of ``points`` (N, D)."""
    # |x - c|^2 without |x|^2, which is the same for every centroid.
    squares, twice = centroids.square().sum(dim=1), 2.0 * centroids.T
    return torch.cat(
        [(squares - part @ twice).argmin(dim=1) for part in torch.split(points, _ROWS)]
    )


def save_quantizer(
    quantizer: FeatureQuantizer,
    path: Path,
    *,
    report: Mapping[str, float],
    request: Mapping[str, Any] | None = None,
) -> None:
    """Publishes the quantiser's file; the same content always gives the same bytes.

    :param report: how the classes are used, kept in the metadata.
    :param request: what was asked for, kept too: see :func:`read_request`.
    """
    metadata = {
        "features": quantizer.settings.model_dump_json(exclude_none=True),
        "report": json.dumps(report),
        "format": FORMAT,
        "sha256": quantizer.content_hash,
    }
    if quantizer.corpus is not None:
        metadata["corpus"] = quantizer.corpus
    if request is not None:
        metadata["request"] = json.dumps(request)
    content = save(quantizer._tensors(), metadata)
    # safetensors writes metadata in another order in every process.
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of eight bytes
    write_bytes(path, len(text).to_bytes(8, "little") + text + content[start:])


def load_quantizer(path: Path) -> FeatureQuantizer:
    """Reads a quantiser file, and the encoder that it names if it names one.

    :raises ConfigError: if there is no such file, it is not one, its content is not what was
        written, or the encoder's files are missing or others.
    """
    settings, metadata, tensors = _read_file(path)
    try:
        quantizer = FeatureQuantizer(
            settings,
            centroids=tensors["centroids"],
            mean=tensors["mean"],
            scale=tensors["scale"],
            corpus=metadata.get("corpus"),
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if metadata.get("sha256", quantizer.content_hash) != quantizer.content_hash:
        raise ConfigError(
            f"{path} is damaged: its content has another hash than was written. Fit it anew."
        )
    return quantizer


def read_settings(path: Path) -> FeatureSettings:
    """How frames are described in the file at ``path``; loads no encoder.

    :raises ConfigError: if there is no such file or it is not a quantiser file.
    """
    return _read_file(path)[0]


def read_request(path: Path) -> dict[str, Any] | None:
    """What the file at ``path`` was fitted for; ``None`` where an earlier version did not say.

    :raises ConfigError: if it is not a quantiser file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} is not a k-means file ({error}).") from error
    if metadata.get("format") != FORMAT:
        raise ConfigError(f"{path} is not a k-means file.")
    try:
        request: dict[str, Any] | None = json.loads(metadata.get("request", "null"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} does not say in JSON what it was fitted for.") from error
    return request


def _read_file(path: Path) -> tuple[FeatureSettings, dict[str, str], dict[str, Tensor]]:
    if not path.is_file():
        raise ConfigError(
            f"there is no k-means file {path}. Fit one with `python launch/cluster.py CORPUS "
            f"--features logmel --clusters 100 --out {path}`."
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            settings = FeatureSettings.model_validate_json(metadata.get("features", ""))
            tensors = {name: file.get_tensor(name) for name in ("centroids", "mean", "scale")}
    except (SafetensorError, ValidationError) as error:
        raise ConfigError(
            f"{path} is not a k-means file of launch/cluster.py ({error}). Fit it anew."
        ) from error
    return settings, metadata, tensors
