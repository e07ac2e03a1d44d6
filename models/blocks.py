"""The one door through which fairseq2's building blocks enter.

fairseq2's native half wants libsndfile at import. Importing ``soundfile`` first supplies the copy
in its wheel, so that no system package (and no root) is needed.
"""

# isort: off
import soundfile  # noqa: F401  (must come first, see above)
from fairseq2.models.conformer import ConformerConvolution
from fairseq2.models.transformer import (
    AttentionBiasCache,
    IdentityBias,
    StandardFeedForwardNetwork,
    StandardMultiheadAttention,
)
from fairseq2.models.transformer.sdpa.base import SDPA
from fairseq2.models.transformer.sdpa.torch import TorchSDPA
from fairseq2.models.wav2vec2.feature_extractor import Wav2Vec2FeatureExtractor
from fairseq2.models.wav2vec2.position_encoder import (
    Wav2Vec2PositionalConv1d,
    Wav2Vec2PositionEncoder,
    Wav2Vec2StackedPositionEncoder,
)
from fairseq2.nn import BatchLayout, PositionEncoder, RotaryEncoder, StandardLayerNorm

__all__ = [
    "SDPA",
    "AttentionBiasCache",
    "BatchLayout",
    "ConformerConvolution",
    "IdentityBias",
    "PositionEncoder",
    "RotaryEncoder",
    "StandardFeedForwardNetwork",
    "StandardLayerNorm",
    "StandardMultiheadAttention",
    "TorchSDPA",
    "Wav2Vec2FeatureExtractor",
    "Wav2Vec2PositionEncoder",
    "Wav2Vec2PositionalConv1d",
    "Wav2Vec2StackedPositionEncoder",
]
