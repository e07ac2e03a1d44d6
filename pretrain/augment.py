"""In-batch mixture: excerpts of other crops added to the input, never to the targets.

As MERT's ``inbatch_noise_augment`` (yizhilll/MERT ``mert_model.py``): a crop is chosen with some
probability and gets 1 to 3 excerpts, each cut at a random place from the concatenation of all other
crops of its group and added at a random place with unit gain. The published group is whatever
shares the GPU; ours is a fixed number of consecutive samples of the global batch, so that results
do not depend on how many ranks there are.
"""

import torch
from torch import Tensor

from etude.pretrain.random import derive, uniform


def mix_in_batch(
    waveform: Tensor,
    sample_ids: Tensor,
    *,
    key: int,
    group: int,
    prob: float,
    min_samples: int,
    max_samples: int,
    max_excerpts: int,
    gain: float,
) -> Tensor:
    """Returns a copy of ``waveform`` (B, T) with excerpts of its neighbours added.

    :param sample_ids: int64 (B,), the only source of variation besides ``key``.
    :param group: consecutive rows that share a pool; must divide B and be at least 2.
    :param prob: probability that a crop is mixed at all.
    :param min_samples: shortest excerpt.
    :param max_samples: longest excerpt; at most T.
    """
    rows, length = waveform.shape
    if group < 2 or rows % group:
        raise ValueError(f"the mixture group ({group}) must be at least 2 and divide {rows} crops")
    draws = uniform(derive(key, "crop"), sample_ids, 2)
    chosen = draws[:, 0] < prob
    excerpts = (draws[:, 1] * max_excerpts).long() + 1  # 1 .. max_excerpts

    step = torch.arange(max_samples, device=waveform.device)
    pool = waveform.view(rows // group, group * length)
    place_in_group = torch.arange(rows, device=waveform.device) % group
    group_of_row = torch.arange(rows, device=waveform.device) // group
    mixed = waveform.clone()
    for excerpt in range(max_excerpts):
        size_draw, source_draw, target_draw = uniform(
            derive(key, "excerpt", excerpt), sample_ids, 3
        ).unbind(1)
        size = min_samples + (size_draw * (max_samples - min_samples + 1)).long()
        # Positions in the pool of the *other* crops; past its own place they shift by one crop.
        source = (source_draw * ((group - 1) * length - size + 1)).long()
        source = source[:, None] + step
        source = source + length * (source >= (place_in_group * length)[:, None])
        target = (target_draw * (length - size + 1)).long()[:, None] + step
        used = (chosen & (excerpt < excerpts))[:, None] & (step < size[:, None])
        source = torch.where(used, source, 0)
        noise = pool[group_of_row[:, None], source] * (used * gain)
        mixed.scatter_add_(1, torch.where(used, target, 0), noise)
    return mixed
