"""Tokens of a neural audio codec (MERT-v1, section 3: the acoustic teacher).

The loss is the *sum* over codebooks of the mean cross-entropy on masked frames, as fairseq's HuBERT
criterion adds the losses of several label sets; per codebook it is that of HuBERT.
"""

import logging
from typing import Protocol

from torch import Tensor

from etude.pretrain.errors import ConfigError
from etude.pretrain.metrics import Mean, Metric
from etude.pretrain.targets.base import FrameContext, Target, TargetLoss
from etude.pretrain.targets.heads import CosineHead, classification_metrics

_log = logging.getLogger(__name__)


class Tokenizer(Protocol):
    """What makes tokens of audio: :class:`etude.pretrain.codec.Codec`."""

    def encode(self, waveform: Tensor) -> Tensor:
        """Waveform (B, T) to int64 (B, frames, codebooks)."""


class Decoder(Protocol):
    """What makes sound of tokens: :class:`etude.pretrain.codec_decoder.TokenDecoder`."""

    sample_rate: int

    def __call__(self, codes_FK: Tensor) -> Tensor:
        """Tokens of one crop to its waveform (T,)."""


class CodecTarget(Target):
    """Predicts all codebooks of each masked frame from one projection.

    :param dim: the encoder's width.
    :param codebooks: predicted, from the coarsest on.
    :param codebook_size: classes of each; no special symbols, no dictionary.
    :param stored: name of the stored tokens that travel with the batch.
    :param tokenizer: encodes each crop where no tokens are stored; exactly one of the two is given.
    :param decoder: makes tokens audible.
    :param silence: why nothing does, where there is none.
    """

    classes: int

    def __init__(
        self,
        dim: int,
        *,
        codebooks: int,
        codebook_size: int,
        final_dim: int,
        temperature: float,
        stored: str | None = None,
        tokenizer: Tokenizer | None = None,
        decoder: Decoder | None = None,
        silence: str = "the target's `weights` are not given",
    ) -> None:
        super().__init__()
        assert (stored is None) != (tokenizer is None)
        self.codebooks = codebooks
        self.codebook_size = self.classes = codebook_size
        self.stored = stored
        self.tokenizer = tokenizer
        self._decoder = decoder
        self._silence = silence
        self._silence_told = False
        self.head = CosineHead(
            dim,
            codebooks=codebooks,
            classes=codebook_size,
            final_dim=final_dim,
            temperature=temperature,
        )

    def compute(self, context: FrameContext) -> Tensor:
        """Tokens of every frame of the encoder, int64 (B, F, K); the codec's last one is cut."""
        if self.stored is not None:
            codes = context.codes[self.stored]
        else:
            assert self.tokenizer is not None
            codes = self.tokenizer.encode(context.waveform)
        return codes[:, : context.num_frames, : self.codebooks]

    def loss(self, hidden_BMD: Tensor, target_BM: Tensor, copied_BM: Tensor) -> TargetLoss:
        """Summed cross-entropy; per codebook what the k-means target reports, as ``q0/...``."""
        compared = self.head.loss(hidden_BMD.flatten(0, 1), target_BM.flatten(0, 1))
        loss = compared.loss.sum()
        frames = target_BM.shape[0] * target_BM.shape[1]
        metrics: dict[str, Metric] = {
            "loss": Mean.of(loss, frames),
            "accuracy": Mean.of(compared.accuracy.mean(), frames),
        }
        for k in range(self.codebooks):
            of_codebook = classification_metrics(
                compared.loss[k],
                compared.accuracy[k],
                target_BM[..., k],
                copied_BM[..., k],
                classes=self.codebook_size,
            )
            metrics.update({f"q{k}/{name}": value for name, value in of_codebook.items()})
        return TargetLoss(loss, metrics)

    def predict(self, hidden_BFD: Tensor) -> Tensor:
        """The most likely tokens, int64 (B, F, K)."""
        logits_KNV: Tensor = self.head(hidden_BFD.flatten(0, 1))
        return logits_KNV.argmax(dim=-1).T.view(*hidden_BFD.shape[:2], self.codebooks)

    def sound(self, target_F: Tensor) -> tuple[Tensor, int] | None:
        """Tokens (F, K) decoded; without weights that decode there is none, which is said once."""
        if self._decoder is None:
            self._tell_silence(self._silence)
            return None
        try:
            return self._decoder(target_F), self._decoder.sample_rate
        except ConfigError as error:
            self._tell_silence(str(error))
            return None

    def _tell_silence(self, reason: str) -> None:
        if not self._silence_told:
            self._silence_told = True
            _log.warning("tokens are not made audible: %s", reason)
