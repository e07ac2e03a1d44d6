"""Sizes by which the conv stack chooses its ways; memory is estimated by them too."""

LONGEST_PATCH = 32
"""Samples of the first kernel up to which its norm is computed from patches: their moments cost the
square of it per frame."""

PART_BYTES = {"cuda": 2 << 30, "cpu": 32 << 20}
"""Size of the rows that are made at a time: on a GPU few products, on a CPU little memory."""
