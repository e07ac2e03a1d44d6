"""EnCodec 24 kHz at 6 kbps as a frozen tokeniser: the only file that imports encodec.

    load_codec     a weights file -> Codec; nothing in the file is executed
    Codec          waveforms -> codes, 75 frames per second, 8 codebooks of 1024
    CodecStream    the same codes chunk by chunk, several tracks side by side, in constant memory

Codec: Defossez, Copet, Synnaeve, Adi, "High Fidelity Neural Audio Compression" (2022), package
``encodec``, which names CC BY-NC 4.0 as its licence. What is computed here is its
``EncodecModel.encode``, operation by operation. The 24 kHz model is causal: frame f depends on no
sample after its own hop, except for the first frames of a track, which see a mirror image of what
follows them.

Letters in names: B lanes (waveforms), T samples, F frames, K codebooks, V codes, D width.
"""

import hashlib
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final

import torch
from encodec.model import ROOT_URL, EncodecModel
from encodec.modules.conv import SConv1d
from encodec.modules.lstm import SLSTM
from encodec.modules.seanet import SEANetResnetBlock
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import remove_weight_norm

from etude.data.files import file_sha256
from etude.models.precision import plain_float32
from etude.pretrain.errors import ConfigError

CodecKind = Literal["encodec_24khz"]

BANDWIDTH_KBPS = 6.0
"""Of the bandwidths that one model offers, the one MERT's targets have: 8 codebooks."""

OFFICIAL_FILE = "encodec_24khz-d7cc33bc.th"
"""The authors' file; the end of its name is the beginning of its sha256."""

OFFICIAL_URL = ROOT_URL + OFFICIAL_FILE

TRANSFORMERS_REPOSITORY = "facebook/encodec_24khz"
"""The same weights on the Hugging Face hub, in the layout of transformers' ``EncodecModel``."""

MODULES: tuple[tuple[str, str], ...] = (
    ("encoder.model.N.conv.conv", "encoder.layers.N.conv"),
    ("encoder.model.N.block.M.conv.conv", "encoder.layers.N.block.M.conv"),
    ("encoder.model.N.shortcut.conv.conv", "encoder.layers.N.shortcut.conv"),
    ("encoder.model.N.lstm", "encoder.layers.N.lstm"),
    ("quantizer.vq.layers.N._codebook", "quantizer.layers.N.codebook"),
)
"""What the codes depend on: encodec's names, transformers'. ``N`` and ``M`` are numbers; a tensor's
last name and its shape are the same on both sides, but for the two below."""

WEIGHT_NORM: tuple[tuple[str, str], ...] = (
    ("weight_g", "parametrizations.weight.original0"),
    ("weight_v", "parametrizations.weight.original1"),
)
"""Magnitude and direction of a convolution's weight: torch's older names, which encodec's file and
older ones of transformers have, and its newer names."""


@final
class Codec(nn.Module):
    """A frozen tokeniser.

    Its weights are buffers that no state dict has, and it has no parameters: a codec inside an
    objective is neither saved in checkpoints, nor trained, nor averaged over ranks. It is an input
    of the run, named in the config, and moves with its owner to the device.

    :param model: encodec's model, its weights loaded; taken apart, not to be used afterwards.
    :param weights_sha256: of the tensors the codes depend on (:func:`content_hash`).
    """

    codebooks_KVD: Tensor

    def __init__(self, model: EncodecModel, *, weights_sha256: str) -> None:
        super().__init__()
        self.name: CodecKind = "encodec_24khz"
        self.weights_sha256 = weights_sha256
        self.sample_rate = int(model.sample_rate)
        self.hop_samples = int(model.encoder.hop_length)
        self.steps = nn.ModuleList(_streaming(module) for module in model.encoder.model)
        books = [book.codebook for book in model.quantizer.vq.layers[: num_codebooks(model)]]
        self.register_buffer("codebooks_KVD", torch.stack(books), persistent=False)

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.hop_samples

    @property
    def num_codebooks(self) -> int:
        """Codes per frame, from the coarsest to the finest."""
        return self.codebooks_KVD.shape[0]

    @property
    def codebook_size(self) -> int:
        """Number of different codes of each codebook."""
        return self.codebooks_KVD.shape[1]

    @property
    def mirrored_frames(self) -> int:
        """Frames at the start of a track that have to be encoded together.

        Each convolution continues its input to the left by a mirror image: the last one, which
        sees the most frames, needs this many to make the first.
        """
        contexts = [step.context for step in self.steps if isinstance(step, _CausalConv)]
        return contexts[-1] + 1

    def encode(self, waveform: Tensor) -> Tensor:
        """Codes of whole waveforms, each taken as the start of a track.

        encodec makes a frame of a last, incomplete hop too, from a mirror image of what is there.
        It is not made here: it is the only frame that more audio would change, and labels are
        counted by whole hops. (Below :attr:`mirrored_frames` whole hops, 93 ms, encodec mirrors
        that frame into the others, which then differ from these.)

        :param waveform: (B, T) at :attr:`sample_rate`, in [-1, 1].
        :returns: int64 (B, T // hop_samples, K).
        """
        return self.quantize(self.embed(waveform))

    def embed(self, waveform: Tensor) -> Tensor:
        """What is quantised, float32 (B, T // hop_samples, D)."""
        frames = waveform.shape[1] // self.hop_samples
        if frames == 0:
            return waveform.new_zeros(len(waveform), 0, self.codebooks_KVD.shape[2])
        whole = waveform[:, : frames * self.hop_samples]
        return self._embed(whole, _Lanes.start(len(waveform), waveform.device))

    @torch.no_grad()
    def quantize(self, embedding_BFD: Tensor) -> Tensor:
        """The nearest code of each codebook to what the coarser ones leave, int64 (B, F, K)."""
        with plain_float32(embedding_BFD.device):
            residual_ND = embedding_BFD.flatten(0, 1)
            codes = []
            for book_VD in self.codebooks_KVD:
                # encodec's expression, with the term that is the same for every code, which
                # decides ties as encodec does.
                distance_NV = -(
                    residual_ND.pow(2).sum(1, keepdim=True)
                    - 2 * residual_ND @ book_VD.t()
                    + book_VD.t().pow(2).sum(0, keepdim=True)
                )
                code_N = distance_NV.max(dim=-1).indices
                residual_ND = residual_ND - F.embedding(code_N, book_VD)
                codes.append(code_N)
            return torch.stack(codes, dim=-1).view(*embedding_BFD.shape[:2], len(codes))

    @torch.no_grad()
    def _embed(self, waveform: Tensor, lanes: "_Lanes") -> Tensor:
        with plain_float32(waveform.device):
            return _run(self.steps, waveform.float()[:, None], lanes).transpose(1, 2)


@final
class CodecStream:
    """Tracks side by side, chunk by chunk, with the codes of :meth:`Codec.encode` on whole tracks.

    What a chunk needs of those before it is kept: the last inputs of each convolution (together
    its receptive field) and the state of the LSTM. Memory depends on the chunk, not on the track.

        stream = CodecStream(codec, lanes=8)
        codes = stream.encode(waveform)      # (8, n * hop_samples) -> (8, n, K)
        stream.restart(3)                    # the next chunk of lane 3 begins another track

    Where a track ends within a chunk, fill it up with zeros and keep the codes of its whole hops:
    what comes later never changes them. (A track of fewer than :attr:`Codec.mirrored_frames` whole
    hops, 93 ms, is encoded as if it went on in silence.)
    """

    def __init__(self, codec: Codec, *, lanes: int) -> None:
        self._codec = codec
        self._lanes = _Lanes.start(lanes, codec.codebooks_KVD.device)

    def encode(self, waveform: Tensor) -> Tensor:
        """Codes of the next chunk of every lane, (B, n * hop_samples) to int64 (B, n, K).

        :raises ValueError: for a chunk of broken hops, for another number of lanes, or if a track
            begins and the chunk is shorter than :attr:`Codec.mirrored_frames`.
        """
        codec, lanes = self._codec, self._lanes
        rows, samples = waveform.shape
        frames, rest = divmod(samples, codec.hop_samples)
        if rows != len(lanes.fresh_B) or rest:
            raise ValueError(
                f"a chunk must be ({len(lanes.fresh_B)}, a multiple of {codec.hop_samples}), but "
                f"is ({rows}, {samples})."
            )
        if lanes.any_fresh and frames < codec.mirrored_frames:
            raise ValueError(
                f"the first chunk of a track must have at least {codec.mirrored_frames} frames, "
                f"but has {frames}: fill it up with zeros if the track is shorter."
            )
        codes = codec.quantize(codec._embed(waveform, lanes))
        lanes.advance()
        return codes

    def restart(self, lane: int) -> None:
        """The next chunk of this lane begins a track."""
        self._lanes.restart(lane)


def load_codec(path: Path, *, kind: CodecKind = "encodec_24khz") -> Codec:
    """Reads a codec's weights.

    :param path: the authors' checkpoint, a file of transformers' ``EncodecModel`` (safetensors), or
        a folder with its ``model.safetensors``.
    :raises ConfigError: if there is no such file, or it does not hold these weights.
    """
    assert kind == "encodec_24khz"
    return codec_from_tensors(read_weights(path), source=str(_file_of(path)))


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a codec's file, or of the file in a folder; nothing in it is executed.

    :raises ConfigError: if there is no such file, or it is of another kind.
    """
    file = _file_of(path)
    if not file.is_file():
        raise ConfigError(
            f"there is no file {file} with the weights of EnCodec 24 kHz. The authors' is "
            f"{OFFICIAL_URL}; transformers' is model.safetensors of {TRANSFORMERS_REPOSITORY} on "
            "the Hugging Face hub. To try things without them: `python launch/standin_codec.py "
            f"CORPUS --out {file}`."
        )
    return _read(file)


def _file_of(path: Path) -> Path:
    return path / "model.safetensors" if path.is_dir() else path


def codec_from_tensors(tensors: Mapping[str, Tensor], *, source: str = "the weights") -> Codec:
    """A codec of a state dict in encodec's or transformers' names; other tensors are ignored.

    :param source: what to call the tensors in an error.
    :raises ConfigError: if a tensor is missing, of another shape, or cannot be a trained one.
    """
    model = untrained_model(seed=0)
    state = _in_encodec_names(tensors, _wanted(model), source)
    for name, tensor in state.items():
        if not bool(tensor.isfinite().all()):
            raise ConfigError(f"{source}: {name} has values that are not finite. Copy it again.")
    empty = [name for name in state if name.endswith(".embed") and not bool(state[name].any())]
    if empty:
        raise ConfigError(
            f"{source}: every codebook must have been trained, but all codes of {_few(empty)} are "
            "zero, as in a model that was only initialised: all labels would be 0."
        )
    model.load_state_dict(state, strict=False)
    return Codec(model, weights_sha256=content_hash(state))


def content_hash(state: Mapping[str, Tensor]) -> str:
    """sha256 over the sorted names, shapes and float32 values of tensors in encodec's naming.

    The identity of a codec in a corpus: the same for the authors' file and transformers', and
    independent of the decoder and of the finer codebooks, which the codes do not depend on.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        values = state[name].detach().cpu().float().contiguous()
        digest.update(f"{name} {tuple(values.shape)}\n".encode("ascii"))
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def untrained_model(*, seed: int) -> EncodecModel:
    """encodec's 24 kHz model with random weights; no one else's random numbers are consumed."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(seed)
        # encodec uses torch's older weight norm, which is nothing that a user could change.
        warnings.simplefilter("ignore", FutureWarning)
        model: EncodecModel = EncodecModel.encodec_model_24khz(pretrained=False)
    model.requires_grad_(False)
    return model


def _read(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except SafetensorError as error:
            raise ConfigError(f"{file} is not a safetensors file ({error}).") from error
    if file.name == OFFICIAL_FILE:
        _check_official(file)
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - a file that is something else can raise anything
        # The first line: what follows is torch's advice to load it unsafely.
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"{file} must be a state dict saved by torch, or end in .safetensors, but cannot be "
            f"read as one ({type(error).__name__}: {reason})."
        ) from error
    if not isinstance(content, Mapping):
        raise ConfigError(
            f"{file} must hold a state dict, but holds an object of type {type(content).__name__}."
        )
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def _check_official(file: Path) -> None:
    expected = file.stem.rpartition("-")[2]
    actual = file_sha256(file)
    if not actual.startswith(expected):
        raise ConfigError(
            f"{file}: the sha256 of the authors' file of this name begins with {expected}, but "
            f"this one's is {actual}. Copy it again from {OFFICIAL_URL}, or give it another name "
            "if it is not meant to be theirs."
        )


def _wanted(model: EncodecModel) -> dict[str, torch.Size]:
    """encodec's names and shapes of what the codes depend on."""
    books = {f"quantizer.vq.layers.{k}._codebook.embed" for k in range(num_codebooks(model))}
    return {
        name: tensor.shape
        for name, tensor in model.state_dict().items()
        if name.startswith("encoder.") or name in books
    }


def num_codebooks(model: EncodecModel) -> int:
    """Codebooks of the bandwidth in use; the model has more for higher ones."""
    return int(model.quantizer.get_num_quantizers_for_bandwidth(model.frame_rate, BANDWIDTH_KBPS))


def _in_encodec_names(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, torch.Size], source: str
) -> dict[str, Tensor]:
    layouts = (
        {name: name for name in wanted},
        {name: transformers_name(name) for name in wanted},
        {name: transformers_name(name, older_weight_norm=True) for name in wanted},
    )
    # The layout that explains the most is the one whose missing tensors are worth naming.
    names = max(layouts, key=lambda layout: sum(key in tensors for key in layout.values()))
    missing = [key for key in names.values() if key not in tensors]
    if missing:
        raise ConfigError(
            f"{source} must hold the {len(names)} tensors that EnCodec 24 kHz encodes with, but "
            f"lacks {len(missing)}: {_few(missing)}."
        )
    state = {name: tensors[key] for name, key in names.items()}
    wrong = [
        f"{names[name]} {tuple(tensor.shape)} instead of {tuple(wanted[name])}"
        for name, tensor in state.items()
        if tensor.shape != wanted[name]
    ]
    if wrong:
        raise ConfigError(
            f"{source}: tensors must have the shapes of EnCodec 24 kHz, but have others: "
            f"{_few(wrong)}. Other EnCodec models (48 kHz, 32 kHz) are not supported."
        )
    return {name: tensor.float() for name, tensor in state.items()}


def transformers_name(name: str, *, older_weight_norm: bool = False) -> str:
    """What transformers calls a tensor of encodec's ``name``."""
    module, _, tensor = name.rpartition(".")
    if not older_weight_norm:
        tensor = dict(WEIGHT_NORM).get(tensor, tensor)
    for ours, theirs in MODULES:
        pattern = re.escape(ours).replace("N", r"(?P<N>\d+)", 1).replace("M", r"(?P<M>\d+)", 1)
        if match := re.fullmatch(pattern, module):
            for letter, number in match.groupdict().items():
                theirs = theirs.replace(letter, number)
            return f"{theirs}.{tensor}"
    raise AssertionError(f"{name} has no row in the table")


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


@dataclass
class _Lanes:
    """What the modules remember of each lane between two chunks."""

    fresh_B: Tensor
    """Lanes whose next chunk begins a track: what is remembered of them is not used."""

    any_fresh: bool = True
    """The same without a look at the device."""

    memory: dict[nn.Module, tuple[Tensor, ...]] = field(default_factory=dict)
    """By module: last inputs of a convolution (B, C, context); state of the LSTM (layers, B, D)."""

    @classmethod
    def start(cls, lanes: int, device: torch.device) -> "_Lanes":
        return cls(torch.ones(lanes, dtype=torch.bool, device=device))

    def restart(self, lane: int) -> None:
        self.fresh_B[lane] = True
        self.any_fresh = True

    def advance(self) -> None:
        """Every lane is in the middle of a track after a chunk."""
        self.fresh_B.zero_()
        self.any_fresh = False


class _Step(nn.Module):
    """A part of the encoder that remembers: (B, C, steps) and the lanes to (B, C', steps')."""

    def forward(self, x: Tensor, lanes: _Lanes) -> Tensor:
        raise NotImplementedError


def _run(steps: nn.ModuleList, x: Tensor, lanes: _Lanes) -> Tensor:
    for step in steps:
        x = step(x, lanes) if isinstance(step, _Step) else step(x)
    return x


class _CausalConv(_Step):
    """A convolution whose input is continued to the left: by what came before, or mirrored.

    :param module: encodec's convolution; its weight norm is resolved.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, module: SConv1d) -> None:
        super().__init__()
        conv: Any = remove_weight_norm(module.conv.conv)
        self.stride: int = conv.stride[0]
        self.dilation: int = conv.dilation[0]
        self.context: int = (conv.kernel_size[0] - 1) * self.dilation - (self.stride - 1)
        self.register_buffer("weight", conv.weight.detach(), persistent=False)
        self.register_buffer("bias", conv.bias.detach(), persistent=False)

    def forward(self, x: Tensor, lanes: _Lanes) -> Tensor:
        if self.context:
            x = torch.cat([self._left(x, lanes), x], dim=2)
            # A copy: a view would keep the whole chunk in memory.
            lanes.memory[self] = (x[:, :, -self.context :].clone(),)
        return F.conv1d(x, self.weight, self.bias, stride=self.stride, dilation=self.dilation)

    def _left(self, x: Tensor, lanes: _Lanes) -> Tensor:
        if not lanes.any_fresh:
            return lanes.memory[self][0]
        # As encodec does where there is less to mirror than is needed: zeros follow.
        longer = F.pad(x, (0, max(0, self.context + 1 - x.shape[2])))
        mirrored = longer[:, :, 1 : self.context + 1].flip(2)
        if self not in lanes.memory:
            return mirrored
        return torch.where(lanes.fresh_B[:, None, None], mirrored, lanes.memory[self][0])


class _Residual(_Step):
    """encodec's residual block."""

    def __init__(self, module: SEANetResnetBlock) -> None:
        super().__init__()
        self.block = nn.ModuleList(_streaming(part) for part in module.block)
        self.shortcut = nn.ModuleList([_streaming(module.shortcut)])

    def forward(self, x: Tensor, lanes: _Lanes) -> Tensor:
        return _run(self.shortcut, x, lanes) + _run(self.block, x, lanes)


class _Recurrent(_Step):
    """encodec's LSTM with its skip connection."""

    def __init__(self, module: SLSTM) -> None:
        super().__init__()
        assert module.skip
        self.lstm: nn.LSTM = module.lstm
        for name, parameter in list(self.lstm.named_parameters()):
            delattr(self.lstm, name)
            self.lstm.register_buffer(name, None, persistent=False)
            # Set, not registered: only then does the LSTM compute with it.
            setattr(self.lstm, name, parameter.detach())

    def forward(self, x: Tensor, lanes: _Lanes) -> Tensor:
        x_FBC = x.permute(2, 0, 1)
        state = lanes.memory.get(self)
        if state is not None and lanes.any_fresh:
            state = tuple(part.masked_fill(lanes.fresh_B[:, None], 0.0) for part in state)
        y_FBC: Tensor
        y_FBC, lanes.memory[self] = self.lstm(x_FBC, state)
        return (y_FBC + x_FBC).permute(1, 2, 0)


def _streaming(module: nn.Module) -> nn.Module:
    """The same computation, able to go on where the chunk before ended."""
    if isinstance(module, SConv1d):
        return _CausalConv(module)
    if isinstance(module, SEANetResnetBlock):
        return _Residual(module)
    if isinstance(module, SLSTM):
        return _Recurrent(module)
    return module
