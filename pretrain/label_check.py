"""Are the labels what the run believes them to be? Asked before training, and in `--dry-run`.

Wrong labels are the costliest mistake of this field, for training runs on happily: with a misnamed
dictionary every token became the same one, the loss went to 0, and a month was lost (fairseq PR
4521, MERT issue 8). So, on a sample of the corpus:

    every discrete target   usage and entropy per codebook; constant or nearly constant: refused
    stored tokens           length of every clip's array against its audio (the whole index);
                            range; constant in a clip that is not silent; and shift in time:
                            by encoding again where the codec's weights are given, otherwise by a
                            search for the lag at which tokens change when the sound does
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from etude.data.audio import decode
from etude.data.batch import scaled
from etude.data.errors import DataError
from etude.data.pipeline import collate, read_crop
from etude.data.plan import CropPlan
from etude.data.tokens import Codes, SplitTokens
from etude.models.frames import FrameGrid
from etude.models.spectral import LogMel
from etude.pretrain.config import (
    CodecTargetConfig,
    Config,
    CqtTargetConfig,
    KmeansTargetConfig,
    TeacherTargetConfig,
)
from etude.pretrain.config_types import FurtherTargetConfig
from etude.pretrain.inputs import Inputs
from etude.pretrain.random import derive
from etude.pretrain.targets.base import FrameContext

if TYPE_CHECKING:
    from etude.pretrain.codec import Codec

SAMPLE_CROPS = 32
"""Crops whose labels are counted where labels are computed on the fly."""

SAMPLE_CLIPS = 64
"""Clips whose stored tokens are read."""

REENCODED_CLIPS = 8
"""Clips that are encoded again: the first of their track, for the codec hears from there on."""

REENCODED_SECONDS = 10.0

MAX_MAJORITY = 0.5
"""Share of the most frequent label at which a codebook counts as nearly constant."""

MAX_LAG_SECONDS = 1.0
"""Shifts are searched up to here."""

TOLERATED_LAG_SECONDS = 0.08
"""A token may change a little after the sound does: its codec hears some frames at once."""

MIN_AGREEMENT = 0.9
"""Of stored tokens with those made again; another device may decide a few ties otherwise."""

_FETCHED_CLIPS = 1000
_QUIET_RMS = 1e-3
_CLEAR_PEAK = 4.0
_LAG_CODEBOOKS = 2
_LOGMEL_BINS, _LOGMEL_WINDOW = 40, 1024


@dataclass(frozen=True)
class _Clip:
    """A sampled clip with its stored tokens."""

    row: int
    place: str
    waveform: npt.NDArray[np.float32]
    codes: Codes


def check_labels(config: Config, inputs: Inputs) -> Iterator[str]:
    """Checks the labels of every discrete target; yields lines with the numbers.

    Every rank comes to the same verdict.

    :raises DataError: naming shard and sample, or the target, and what is wrong.
    """
    # Stored tokens first: crops, which come with them, cannot even be read where they are broken.
    computed: dict[str, KmeansTargetConfig | CodecTargetConfig | FurtherTargetConfig] = {}
    for name, target in config.objective.targets.items():
        match target:
            case KmeansTargetConfig() | CodecTargetConfig(source="online") | FurtherTargetConfig():
                computed[name] = target
            case CodecTargetConfig():
                for part in inputs.train.parts:
                    yield from check_stored(
                        name,
                        part,
                        part.tokens[target.codec],
                        grid=config.model.grid,
                        codec=inputs.codecs.get(name),
                        seed=config.seed,
                    )
            case CqtTargetConfig() | TeacherTargetConfig():
                pass
    if not computed:
        return
    crops = [read_crop(inputs.train, position) for position in range(SAMPLE_CROPS)]
    parts = [
        scaled(collate(crops[i : i + 8], update=0, crop_samples=config.crop_samples).waveform)
        for i in range(0, len(crops), 8)
    ]
    for name, target in computed.items():
        match target:
            case KmeansTargetConfig():
                quantizer = inputs.quantizers[name]
                labels = torch.cat([quantizer(part) for part in parts])[..., None]
                yield from _usage(name, labels.flatten(0, 1), quantizer.num_classes)
            case CodecTargetConfig():
                codec = inputs.codecs[name]
                codes = torch.cat([codec.encode(part) for part in parts])[..., : target.codebooks]
                yield from _usage(name, codes.flatten(0, 1), codec.codebook_size)
            case FurtherTargetConfig():
                yield from _usage_of_further(name, target, config, parts)


def check_stored(
    name: str,
    plan: CropPlan,
    tokens: SplitTokens,
    *,
    grid: FrameGrid,
    codec: "Codec | None",
    seed: int,
) -> Iterator[str]:
    """Checks stored tokens against their audio; yields lines with the numbers.

    :param grid: of the encoder, whose frames the tokens are to be.
    :raises DataError: if they cannot be the tokens of this audio.
    """
    settings = tokens.tokens.settings
    split = plan.split
    expected = split.num_samples // settings.hop_samples
    wrong = np.flatnonzero(tokens.members["frames"] != expected)
    if len(wrong):
        row = int(wrong[0])
        rate = settings.sample_rate / settings.hop_samples
        found = rate * tokens.frames(row) / float(expected[row])
        raise DataError(
            f"{tokens.place(row)} has {tokens.frames(row)} frames, but its audio of "
            f"{split.num_samples[row]} samples makes {expected[row]}: they come at about "
            f"{found:.1f} Hz instead of {rate:g}, or end early; "
            f"{len(wrong)} of {len(expected)} clips are so. Encode the corpus again."
        )
    clips = [_read(plan, tokens, row) for row in _sample(plan, SAMPLE_CLIPS, seed)]
    for clip in clips:
        _check_clip(clip, settings.codebook_size)
    codes = torch.from_numpy(np.concatenate([clip.codes for clip in clips]).astype(np.int64))
    yield from _usage(name, codes, settings.codebook_size)
    if codec is not None:
        yield _check_by_encoding(name, plan, tokens, codec, seed)
    else:
        yield _check_by_lag(name, clips, grid)


def _sample(plan: CropPlan, count: int, seed: int, rows: Sequence[int] | None = None) -> list[int]:
    if rows is not None:
        everything = np.asarray(rows)
    elif plan.split.corpus.store is None:
        everything = np.arange(len(plan.split))
    else:  # what is heard first: to look all over would fetch a shard for each
        everything = plan.clips[plan.order(0)[:count]]
    generator = np.random.default_rng(derive(seed, "label check"))
    chosen = generator.permutation(everything)[:count]
    return sorted(int(row) for row in chosen)


def _read(plan: CropPlan, tokens: SplitTokens, row: int) -> _Clip:
    waveform, _ = decode(plan.split.read_audio_bytes(row))
    return _Clip(row, tokens.place(row), waveform, tokens.read(row))


def _check_clip(clip: _Clip, codebook_size: int) -> None:
    if clip.codes.size and int(clip.codes.max()) >= codebook_size:
        frame, book = (int(i[0]) for i in np.nonzero(clip.codes >= codebook_size))
        raise DataError(
            f"{clip.place}: codes must be below {codebook_size}, but codebook {book} has "
            f"{clip.codes[frame, book]} at frame {frame}. Encode the corpus again."
        )
    loud = float(np.sqrt(np.mean(np.square(clip.waveform)))) > _QUIET_RMS
    constant = [k for k in range(clip.codes.shape[1]) if len(np.unique(clip.codes[:, k])) == 1]
    if loud and len(clip.codes) > 1 and constant:
        raise DataError(
            f"{clip.place}: codebook {constant[0]} is {clip.codes[0, constant[0]]} in all "
            f"{len(clip.codes)} frames, although its audio is not silent: these are no tokens of "
            "it. Encode the corpus again."
        )


def _usage_of_further(
    name: str, settings: FurtherTargetConfig, config: Config, parts: Sequence[Tensor]
) -> Iterator[str]:
    target = settings.build(config.model, seed=derive(config.seed, "target", name))
    if target.classes is None:  # no labels
        return
    frames = config.model.grid.num_frames(config.crop_samples)
    with torch.no_grad():
        labels = torch.cat([target.compute(FrameContext(part, frames)) for part in parts])
    codebooks = 1 if labels.ndim == 2 else labels.shape[2]
    yield from _usage(name, labels.reshape(-1, codebooks), target.classes)


def _usage(name: str, labels_NK: Tensor, classes: int) -> Iterator[str]:
    """Usage of each codebook; refuses one that is nearly constant."""
    for k, labels_N in enumerate(labels_NK.unbind(1)):
        counts = torch.bincount(labels_N, minlength=classes).double()
        share = counts / counts.sum()
        entropy = float(torch.special.entr(share).sum())
        used, majority = int((counts > 0).sum()), float(share.max())
        label = f"{name}/q{k}" if labels_NK.shape[1] > 1 else name
        yield (
            f"{label}: {used} of {classes} labels in {len(labels_N):,} frames, entropy "
            f"{entropy:.2f} nats, most frequent {majority:.1%}"
        )
        if majority > MAX_MAJORITY:
            raise DataError(
                f"objective.targets.{name}: label {int(share.argmax())} makes up {majority:.1%} of "
                f"{label}'s labels in a sample of the corpus (more than {MAX_MAJORITY:.0%}): a "
                "model would learn to say it always. Look at how the labels were made."
            )


def _check_by_encoding(
    name: str, plan: CropPlan, tokens: SplitTokens, codec: "Codec", seed: int
) -> str:
    """Encodes the beginnings of some tracks again and looks where the stored tokens agree."""
    first_of_track = np.flatnonzero(np.diff(plan.split.members["track"], prepend=-1))
    if plan.split.corpus.store is not None:
        early = plan.clips[plan.order(0)[:_FETCHED_CLIPS]]
        first_of_track = np.intersect1d(first_of_track, early)
    rows = _sample(plan, REENCODED_CLIPS, seed, [int(row) for row in first_of_track])
    most = round(MAX_LAG_SECONDS * codec.frame_rate)
    samples = round(REENCODED_SECONDS * codec.frame_rate) * codec.hop_samples
    for row in rows:
        clip = _read(plan, tokens, row)
        waveform = torch.from_numpy(clip.waveform[:samples])[None]
        device = codec.codebooks_KVD.device
        again = codec.encode(waveform.to(device))[0].cpu().numpy()[:, : clip.codes.shape[1]]
        stored = clip.codes[: len(again)]
        lags = range(-min(most, len(again) // 2), min(most, len(again) // 2) + 1)
        agreement = {lag: _agreement(stored, again, lag) for lag in lags}
        best = max(agreement, key=lambda lag: (agreement[lag], -abs(lag)))
        if agreement[0] < MIN_AGREEMENT < agreement[best]:
            raise DataError(
                f"{clip.place}: its tokens are {abs(best) / codec.frame_rate:.2f} s "
                f"{'late' if best > 0 else 'early'}: {agreement[best]:.0%} agree with what the "
                f"codec says there, {agreement[0]:.0%} where they are. Encode the corpus again."
            )
        if agreement[0] < MIN_AGREEMENT:
            raise DataError(
                f"{clip.place}: only {agreement[0]:.0%} of its tokens are what the codec says of "
                "its audio: they belong to other audio. Encode the corpus again."
            )
    return (
        f"{name}: tokens of {len(rows)} tracks were made again and agree, "
        f"{agreement[0]:.1%} in the last"
    )


def _agreement(stored: Codes, again: npt.NDArray[np.int64], lag: int) -> float:
    """Share of equal codes if the stored ones are ``lag`` frames late."""
    if lag >= 0:
        return float(np.mean(stored[lag:] == again[: len(again) - lag]))
    return float(np.mean(stored[:lag] == again[-lag:]))


def _check_by_lag(name: str, clips: Sequence[_Clip], grid: FrameGrid) -> str:
    """The lag at which changes of tokens go with changes of sound, over all sampled clips."""
    most = round(MAX_LAG_SECONDS * grid.frame_rate)
    spectrum = LogMel(grid, bins=_LOGMEL_BINS, n_fft=_LOGMEL_WINDOW)
    total = np.zeros(2 * most + 1)
    used = []
    for clip in clips:
        flux = _flux(spectrum, clip.waveform)
        # The coarsest: finer ones change at nearly every frame.
        codes = clip.codes[:, :_LAG_CODEBOOKS]
        changes = (codes[1:] != codes[:-1]).mean(axis=1)
        frames = min(len(flux), len(changes))
        if frames < 3 * most or flux[:frames].std() == 0 or changes[:frames].std() == 0:
            continue
        total += _correlation(flux[:frames], changes[:frames], most)
        used.append(clip)
    if not used:
        return (
            f"{name}: whether tokens are shifted in time cannot be told without the codec's "
            "weights (no clip is long enough)"
        )
    lags = np.arange(-most, most + 1)
    best = int(lags[total.argmax()])
    tolerated = np.abs(lags) <= round(TOLERATED_LAG_SECONDS * grid.frame_rate)
    # How far the peak stands out from what other lags give.
    clearness = float((total.max() - np.median(total)) / (1.4826 * _mad(total) + 1e-12))
    seconds = best / grid.frame_rate
    if clearness < _CLEAR_PEAK:
        return (
            f"{name}: whether tokens are shifted in time cannot be told without the codec's "
            f"weights (no lag stands out: {clearness:.1f})"
        )
    if not tolerated[best + most]:
        raise DataError(
            f"{used[0].place} and {len(used) - 1} more: tokens change when the sound does only if "
            f"they are {abs(seconds):.2f} s {'late' if best > 0 else 'early'} (by {clearness:.0f} "
            "deviations over other lags): they are out of step with the audio. Encode the corpus "
            "again, or give the codec's weights in "
            f"objective.targets.{name}.weights for a direct comparison."
        )
    return (
        f"{name}: tokens change when the sound does, at a lag of {seconds:+.2f} s "
        f"({clearness:.0f} deviations over other lags, {len(used)} clips)"
    )


def _flux(spectrum: LogMel, waveform: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Rise of the log-mel spectrum from frame to frame, (frames - 1,)."""
    bands = spectrum(torch.from_numpy(waveform)[None])[0].double().numpy()
    rise: npt.NDArray[np.float64] = np.maximum(np.diff(bands, axis=0), 0.0).mean(axis=1)
    return rise


def _correlation(
    flux: npt.NDArray[np.float64], changes: npt.NDArray[np.float64], most: int
) -> npt.NDArray[np.float64]:
    """Correlation of the two for lags -most .. most of the changes, (2 most + 1,)."""
    one = (flux - flux.mean()) / flux.std()
    other = (changes - changes.mean()) / changes.std()
    middle = one[most : len(one) - most]
    shifted = np.lib.stride_tricks.sliding_window_view(other, len(middle))
    together: npt.NDArray[np.float64] = shifted @ middle / np.sqrt(len(middle))
    return together


def _mad(values: npt.NDArray[np.float64]) -> float:
    return float(np.median(np.abs(values - np.median(values))))
