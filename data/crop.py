"""Where a crop starts in its clip: a pure function of the seed and the crop's place in the run."""

import numpy as np


def crop_start(
    num_samples: int,
    crop_samples: int,
    *,
    hop_samples: int,
    seed: int,
    position: int,
    stratum: int = 0,
    strata: int = 1,
) -> int:
    """First sample of a crop, a multiple of the encoder's hop.

    Aligned crops keep labels that were made for the whole clip (codec tokens) aligned to the
    frames; a free start would put them off by up to half a frame.

    :param num_samples: length of the clip; one shorter than a crop is taken whole.
    :param position: the crop's place in the run's order.
    :param stratum: which of ``strata`` equal parts of the possible starts it is drawn from.
    """
    starts = max(0, num_samples - crop_samples) // hop_samples + 1
    low = starts * stratum // strata
    high = max(low + 1, starts * (stratum + 1) // strata)
    # As a plain list the two would become floats if the seed is large, and lose its last bits.
    key = np.array([seed, position], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key))
    return int(generator.integers(low, high)) * hop_samples
