"""The in-batch mixture, against a plain loop."""

import pytest
import torch
from torch import Tensor

from etude.pretrain.augment import mix_in_batch
from etude.pretrain.random import derive, uniform

KEY = derive(0, "mixture")
LENGTH = 200


def mix(waveform: Tensor, ids: Tensor | None = None, **changes: float) -> Tensor:
    settings = {
        "group": 4,
        "prob": 0.8,
        "min_samples": 20,
        "max_samples": 60,
        "max_excerpts": 3,
        "gain": 1.0,
    }
    ids = torch.arange(len(waveform)) if ids is None else ids
    return mix_in_batch(waveform, ids, key=KEY, **{**settings, **changes})


def in_a_loop(waveform: Tensor, *, group: int, prob: float, gain: float) -> Tensor:
    """What the docstring says, one sample at a time."""
    mixed = waveform.clone()
    for row in range(len(waveform)):
        ids = torch.tensor([row])
        chosen, how_many = uniform(derive(KEY, "crop"), ids, 2)[0]
        if chosen >= prob:
            continue
        first = row // group * group
        others = torch.cat([waveform[i] for i in range(first, first + group) if i != row])
        for excerpt in range(int(how_many * 3) + 1):
            draws = uniform(derive(KEY, "excerpt", excerpt), ids, 3)[0]
            size = 20 + int(draws[0] * 41)
            source = int(draws[1] * (len(others) - size + 1))
            target = int(draws[2] * (LENGTH - size + 1))
            for step in range(size):
                mixed[row, target + step] += gain * others[source + step]
    return mixed


@pytest.mark.parametrize(("group", "prob", "gain"), [(2, 0.8, 1.0), (4, 0.5, 0.5), (8, 1.0, 1.0)])
def test_the_mixture_is_what_a_plain_loop_gives(group: int, prob: float, gain: float) -> None:
    waveform = torch.randn(16, LENGTH, generator=torch.Generator().manual_seed(0))
    expected = in_a_loop(waveform, group=group, prob=prob, gain=gain)
    mixed = mix(waveform, group=group, prob=prob, gain=gain)
    assert not torch.equal(mixed, waveform)
    assert float((mixed - expected).abs().max()) < 1e-5


def test_a_crop_hears_only_the_others_of_its_group() -> None:
    # Powers of four: up to three excerpts at once are told apart by their digits.
    waveform = (4.0 ** torch.arange(8))[:, None].expand(8, LENGTH).contiguous()
    heard = torch.zeros(8, 8, dtype=torch.bool)
    for first in range(0, 400, 8):
        mixed = mix(waveform, torch.arange(first, first + 8), prob=1.0)
        for other in range(8):
            digit = torch.div(mixed, 4.0**other, rounding_mode="floor") % 4
            own = torch.zeros(8, 1)
            own[other] = 1
            heard[:, other] |= (digit != own).any(dim=1)
    expected = torch.block_diag(torch.ones(4, 4), torch.ones(4, 4)).bool()
    expected.fill_diagonal_(False)
    assert torch.equal(heard, expected)


def test_one_excerpt_changes_one_stretch_of_an_allowed_length() -> None:
    waveform = (4.0 ** torch.arange(8))[:, None].expand(8, LENGTH).contiguous()
    lengths, places = set(), set()
    for first in range(0, 1600, 8):
        mixed = mix(waveform, torch.arange(first, first + 8), prob=1.0, max_excerpts=1)
        for row in (mixed != waveform).int():
            changed = row.nonzero().flatten()
            assert len(changed) == changed[-1] - changed[0] + 1
            lengths.add(len(changed))
            places |= {int(changed[0]) == 0, int(changed[-1]) == LENGTH - 1}
    assert (min(lengths), max(lengths)) == (20, 60)


def test_crops_are_chosen_with_the_given_probability_and_get_one_to_three_excerpts() -> None:
    waveform = torch.ones(4000, LENGTH)
    mixed = mix(waveform, prob=0.3, min_samples=20, max_samples=20)
    added = (mixed - waveform).sum(dim=1) / 20
    assert float((added > 0).float().mean()) == pytest.approx(0.3, abs=0.03)
    for excerpts in (1, 2, 3):
        share = float((added[added > 0] == excerpts).float().mean())
        assert share == pytest.approx(1 / 3, abs=0.06)
    assert torch.equal(mix(waveform, prob=0.0), waveform)


def test_a_group_is_mixed_alike_in_whatever_micro_batch_it_is() -> None:
    waveform = torch.randn(8, LENGTH, generator=torch.Generator().manual_seed(0))
    before = waveform.clone()
    ids = torch.arange(40, 48)
    whole = mix(waveform, ids)
    parts = [mix(waveform[i : i + 4], ids[i : i + 4]) for i in (0, 4)]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(waveform, before)  # the targets are made from it


def test_a_group_that_does_not_divide_the_batch_is_refused() -> None:
    for group in (3, 1):
        with pytest.raises(ValueError, match="mixture group"):
            mix(torch.zeros(4, LENGTH), group=group)
