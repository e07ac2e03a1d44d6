"""Stand-in weights for EnCodec 24 kHz, where the real ones cannot be had.

    encoder      random, but scaled to the audio, and its last two convolutions average over time:
                 a bank of random filters, rectified and smoothed
    codebooks    stage by stage, k-means centroids of what the coarser stages leave

With them the whole path of codec targets runs, on labels that are in balanced use and can be learnt
from context. (A plain random encoder is nearly linear: its output follows the phase of the wave,
and neighbouring frames have little in common.) They say little about the real ones: nothing of the
encoder is trained.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from etude.data.files import published
from etude.pretrain.codec import num_codebooks, untrained_model
from etude.pretrain.errors import ConfigError
from etude.pretrain.quantizer import nearest_centroid

FRAMES = 30_000
"""Frames to fit the codebooks to: 29 per code, 6.7 minutes of audio."""

CALIBRATION_FRAMES = 1_500
"""Frames that the convolutions are scaled by: 20 s of audio."""

_GAIN = 4.0
"""Standard deviation of a scaled convolution's output: much above 1, where ELU rectifies instead of
passing small values on unchanged."""


@dataclass(frozen=True)
class BookUsage:
    """How evenly a codebook is used on the frames it was fitted to."""

    size: int
    """Codes of the book."""

    used: int
    """Codes with at least one frame."""

    largest_share: float
    """Share of frames that have the most frequent code."""

    entropy: float
    """Unigram entropy of the codes in nats."""

    residual: float
    """Share of the embedding's variance that this book and the coarser ones leave."""


@dataclass(frozen=True)
class StandinReport:
    """What the codebooks were fitted to and how they are used, from the coarsest on."""

    frames: int
    books: tuple[BookUsage, ...]

    @property
    def balanced(self) -> bool:
        """Whether every book is at least half used, and no code has more than 10 % of frames."""
        return all(2 * book.used >= book.size and book.largest_share <= 0.1 for book in self.books)


@torch.no_grad()
def fit_standin(
    stream: Iterable[Tensor], *, seed: int, frames: int = FRAMES, iterations: int = 8
) -> tuple[dict[str, Tensor], StandinReport]:
    """Makes a state dict of encodec's model, to be written by :func:`save_standin`.

    :param stream: waveforms (B, T) at 24 kHz; read until there are enough frames.
    :param frames: frames to fit the codebooks to, 75 per second.
    :param iterations: Lloyd iterations for each codebook.
    :raises ConfigError: if the stream has fewer frames than a codebook has codes.
    """
    generator = torch.Generator().manual_seed(seed)
    # Any: encodec's modules keep what is needed here in attributes that torch does not declare.
    model: Any = untrained_model(seed=seed)
    embedding_ND = _fit_encoder(model, stream, frames)
    if len(embedding_ND) < model.quantizer.bins:
        raise ConfigError(
            f"a codebook of {model.quantizer.bins} codes needs at least as many frames, but the "
            f"audio has {len(embedding_ND)}. Give more of it, 75 frames are a second."
        )
    residual_ND = embedding_ND
    usage = []
    for layer in model.quantizer.vq.layers[: num_codebooks(model)]:
        book_VD = _fit_book(residual_ND, model.quantizer.bins, iterations, generator)
        code_N = _nearest(residual_ND, book_VD)
        residual_ND = residual_ND - book_VD[code_N]
        count_V = torch.bincount(code_N, minlength=len(book_VD)).float()
        share_V = count_V / len(code_N)
        usage.append(
            BookUsage(
                size=len(book_VD),
                used=int((share_V > 0).sum()),
                largest_share=float(share_V.max()),
                entropy=float(torch.special.entr(share_V).sum()),
                residual=float(residual_ND.square().mean() / embedding_ND.square().mean()),
            )
        )
        book = layer._codebook
        book.embed.copy_(book_VD)
        book.embed_avg.copy_(book_VD * count_V[:, None])
        book.cluster_size.copy_(count_V)
        book.inited.fill_(1.0)
    return dict(model.state_dict()), StandinReport(len(embedding_ND), tuple(usage))


def save_standin(state: dict[str, Tensor], path: Path) -> None:
    """Writes the state dict as the authors' file has it; ``load_codec`` reads it."""
    with published(path) as file:
        torch.save(state, file)


def _fit_encoder(model: Any, stream: Iterable[Tensor], frames: int) -> Tensor:
    """Fits the encoder to the audio; returns its standardised embeddings, (N, D)."""
    layers, hop = model.encoder.model, int(model.encoder.hop_length)
    clips = _whole_hops(stream, hop, frames)
    first: list[Tensor] = []
    for clip in clips:
        first.append(clip)
        if sum(x.shape[0] * x.shape[2] for x in first) >= CALIBRATION_FRAMES * hop:
            break
    if not first:
        return torch.zeros(0, model.encoder.dimension)
    _shape(layers, first)
    embeddings = [model.encoder(x).transpose(1, 2).flatten(0, 1) for x in chain(first, clips)]
    embedding_ND = torch.cat(embeddings)[:frames]
    mean_D, std_D = embedding_ND.mean(dim=0), _spread(embedding_ND, dim=0)
    _rescale(layers[-1].conv.conv, mean_D, std_D)
    return (embedding_ND - mean_D) / std_D


def _whole_hops(stream: Iterable[Tensor], hop: int, frames: int) -> Iterator[Tensor]:
    """Waveforms (B, 1, T) without broken hops, until there are enough frames."""
    for waveform in stream:
        whole = waveform.shape[1] // hop
        if whole:
            yield waveform[:, None, : whole * hop]
        frames -= len(waveform) * whole
        if frames <= 0:
            return


def _shape(layers: Any, signals: list[Tensor]) -> None:
    """Makes the last convolutions rectify and smooth, rather than pass on the phase of the wave.

    :param layers: encodec's encoder, whose last three convolutions run at 600, 75 and 75 Hz.
    :param signals: audio (B, 1, T).
    """
    *_, filters, smoothing, last = (i for i, layer in enumerate(layers) if hasattr(layer, "conv"))
    signals = _scaled(layers[: filters + 1], signals)
    _average(layers[smoothing].conv.conv)
    _scaled(layers[filters + 1 : smoothing + 1], signals)
    _average(layers[last].conv.conv)


def _scaled(layers: Any, signals: list[Tensor]) -> list[Tensor]:
    """Scales the convolution that ``layers`` end with to the signals; returns its outputs."""
    outputs = [layers(x) for x in signals]
    channels = torch.cat([x.transpose(0, 1).flatten(1) for x in outputs], dim=1)
    mean_C, std_C = channels.mean(dim=1), _spread(channels, dim=1) / _GAIN
    _rescale(layers[-1].conv.conv, mean_C, std_C)
    return [(x - mean_C[:, None]) / std_C[:, None] for x in outputs]


def _spread(values: Tensor, *, dim: int) -> Tensor:
    """Standard deviation; not zero where all is silent."""
    return values.std(dim=dim).clamp(min=1e-9)


def _rescale(conv: Any, mean_C: Tensor, std_C: Tensor) -> None:
    """Makes a weight-normed convolution return (output - mean) / std."""
    conv.weight_g.div_(std_C[:, None, None])
    conv.bias.sub_(mean_C).div_(std_C)


def _average(conv: Any) -> None:
    """Gives every tap of a weight-normed convolution the weight of its first."""
    conv.weight_v.copy_(conv.weight_v[:, :, :1].expand_as(conv.weight_v).clone())


def _fit_book(points_ND: Tensor, size: int, iterations: int, generator: torch.Generator) -> Tensor:
    """Centroids (V, D) of k-means, from random frames on, as encodec starts its own.

    Rare codes are put elsewhere, as in encodec's training, and each mean has one more frame at
    zero. Otherwise the loudest frames get a code each (k-means++ would even begin with them),
    nothing is left of them, and in the finer books one code has all these zeros.
    """

    def random_points(count: int) -> Tensor:
        return points_ND[torch.randint(len(points_ND), (count,), generator=generator)]

    fewest = max(2, len(points_ND) // (4 * size))
    book_VD = points_ND[torch.randperm(len(points_ND), generator=generator)[:size]]
    for iteration in range(iterations):
        code_N = _nearest(points_ND, book_VD)
        count_V = torch.bincount(code_N, minlength=size)
        total_VD = torch.zeros_like(book_VD).index_add_(0, code_N, points_ND)
        book_VD = total_VD / (count_V[:, None] + 1)
        if iteration < iterations - 2:  # the last ones settle
            rare = count_V < fewest
            book_VD[rare] = random_points(int(rare.sum()))
    return book_VD


def _nearest(points_ND: Tensor, book_VD: Tensor) -> Tensor:
    """In parts: all distances at once would be 4 KB per frame."""
    return torch.cat([nearest_centroid(part, book_VD) for part in torch.split(points_ND, 8192)])
