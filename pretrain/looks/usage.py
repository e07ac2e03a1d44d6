"""How a target's classes are used: as labels, and by the model's guesses."""

from collections.abc import Mapping

import torch
from torch import Tensor

from etude.pretrain.looks.judging import Judged


class Usage:
    """Counts over masked frames, by codebook.

    :param classes: of each codebook.
    """

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self.target_KV = torch.zeros(0, classes, dtype=torch.int64)
        self.predicted_KV = torch.zeros(0, classes, dtype=torch.int64)

    def add(self, target_MK: Tensor, predicted_MK: Tensor) -> None:
        """Adds labels of frames, int64 (M, K), or (M,) of a single codebook."""
        self.target_KV = self._sum(self.target_KV, target_MK)
        self.predicted_KV = self._sum(self.predicted_KV, predicted_MK)

    def metrics(self) -> dict[str, float]:
        """For each codebook ``q0/…``, or without it for a single one.

        ``target_perplexity`` and ``predicted_perplexity``, the exponential of the entropy: so many
        classes in even use would be as uncertain. ``dead_targets``, ``dead_predictions``: classes
        that occur in none of these frames.
        """
        found = {}
        for k, pair in enumerate(zip(self.target_KV, self.predicted_KV, strict=True)):
            prefix = "" if len(self.target_KV) == 1 else f"q{k}/"
            for who, dead, count_V in zip(
                ("target", "predicted"), ("dead_targets", "dead_predictions"), pair, strict=True
            ):
                share_V = count_V.double() / count_V.sum()
                found[f"{prefix}{who}_perplexity"] = float(torch.special.entr(share_V).sum().exp())
                found[f"{prefix}{dead}"] = float((count_V == 0).sum())
        return found

    def _sum(self, counts_KV: Tensor, labels_M: Tensor) -> Tensor:
        labels_MK = labels_M[:, None] if labels_M.dim() == 1 else labels_M
        more = [torch.bincount(column, minlength=self._classes) for column in labels_MK.T]
        return torch.stack(more) + (counts_KV if len(counts_KV) else 0)


def add_usage(found: dict[str, Usage], crop: Judged, classes: Mapping[str, int]) -> None:
    """Counts the masked frames of a crop, of the targets that have classes."""
    for name, number in classes.items():
        if name in crop.guesses:
            usage = found.setdefault(name, Usage(number))
            usage.add(*(values_F[crop.mask_F] for values_F in crop.guesses[name]))
