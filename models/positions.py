"""Relative positions by convolution: one wide weight-normed one (MERT) or a stack (music2vec)."""

from etude.models.blocks import (
    PositionEncoder,
    Wav2Vec2PositionEncoder,
    Wav2Vec2StackedPositionEncoder,
)


def build_positions(dim: int, *, kernel: int, groups: int, depth: int) -> PositionEncoder:
    """Returns a module that adds positional features to (B, F, D).

    fairseq2's blocks initialise themselves as fairseq does: N(0, sqrt(4 / (kernel * dim))), bias 0,
    for the single convolution, torch's default for the stack.
    """
    if depth == 1:
        return Wav2Vec2PositionEncoder(dim, kernel, groups)
    return Wav2Vec2StackedPositionEncoder(dim, kernel, groups, depth)
