"""Relative positions by convolution: one wide weight-normed one (MERT) or a stack (music2vec).

Or by rotation of each layer's queries and keys (Su et al. 2021, arXiv 2104.09864).
"""

from typing import Literal

from torch import Tensor

from etude.models.blocks import (
    BatchLayout,
    PositionEncoder,
    RotaryEncoder,
    Wav2Vec2PositionEncoder,
    Wav2Vec2StackedPositionEncoder,
)
from etude.models.fourier_conv import convolve_by_fourier

MOST_FRAMES = 1 << 15
"""Longest stretch of audio that rotary positions can be of: 7 min at 75 Hz."""


def build_rotation(head_dim: int) -> RotaryEncoder:
    """Returns the rotation of queries and keys (B, F, heads, E) for all layers; E is even."""
    return RotaryEncoder(head_dim, MOST_FRAMES)


def build_positions(
    dim: int, *, kernel: int, groups: int, depth: int, impl: Literal["fast", "plain"]
) -> PositionEncoder:
    """Returns a module that adds positional features to (B, F, D).

    fairseq2's blocks initialise themselves as fairseq does: N(0, sqrt(4 / (kernel * dim))), bias 0,
    for the single convolution, torch's default for the stack.
    """
    positions = (
        Wav2Vec2PositionEncoder(dim, kernel, groups)
        if depth == 1
        else Wav2Vec2StackedPositionEncoder(dim, kernel, groups, depth)
    )
    if impl == "fast":
        convolve_by_fourier(positions)
    return positions


def add_positions(
    positions: PositionEncoder, hidden: Tensor, layout: BatchLayout, *, exact: bool
) -> Tensor:
    """``hidden`` (B, F, D) with its positional features added.

    :param exact: lets nothing leak from the padding. A single convolution reads zeros there; in a
        stack, what one convolution leaves in the padding would leak through the next
        (``published``: fairseq's and transformers' stacks do leak).
    """
    if not (exact and layout.padded and isinstance(positions, Wav2Vec2StackedPositionEncoder)):
        added: Tensor = positions(hidden, layout)
        return added
    inside_BF1 = (layout.position_indices >= 0)[..., None]
    hidden = hidden.masked_fill(~inside_BF1, 0.0)
    encoded = hidden
    for layer in positions.layers:
        encoded = layer(encoded.transpose(1, 2)).transpose(1, 2).masked_fill(~inside_BF1, 0.0)
    return hidden + encoded
