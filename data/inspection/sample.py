"""Which clips are looked at, when a corpus is too large to hear all of it.

The clips of a split lie shard after shard in the index. One clip is drawn from each of equally many
equal stretches of it, so every shard has its share; and they are visited in an order of which every
beginning is spread over the split too, for time may run out.
"""

import numpy as np

_GOLDEN = (5**0.5 - 1) / 2


def spread(length: int, count: int) -> list[int]:
    """At most ``count`` of the numbers below ``length``, the same ones every time.

    Multiples of the golden ratio modulo 1 leave no large gap, however many of them are taken
    (the three-gap theorem): they give the order.
    """
    count = min(length, count)
    edges = np.arange(count + 1) * length // max(count, 1)
    # Anywhere in its stretch: a fixed place would hear the same part of every track where the
    # stretches are as long as tracks.
    numbers = np.random.default_rng(0).integers(edges[:-1], edges[1:])
    order = np.argsort((np.arange(count) * _GOLDEN) % 1.0)
    return [int(number) for number in numbers[order]]
