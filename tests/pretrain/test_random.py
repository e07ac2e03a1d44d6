"""Random numbers that are functions of what they are for."""

import pytest
import torch

from etude.pretrain.random import derive, seed_dropout, uniform, uniform_number

MASK = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15


def splitmix(state: int) -> int:
    """One output of SplitMix64, in Python's own integers."""
    value = (state + GAMMA) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def test_the_generator_is_splitmix64_bit_for_bit() -> None:
    # The published first outputs for the seed 1234567.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [splitmix(1234567 + i * GAMMA) for i in range(3)] == published

    key = derive(3, "mask")
    state = splitmix(3)
    for byte in b"mask":
        state = splitmix(state ^ byte)
    assert key == state and key >= 1 << 63  # the sign bit is set: the harder case for int64
    ids = [0, 1, 2**40, -5]
    expected = [
        [
            (splitmix(splitmix((i + key) & MASK) + c * GAMMA & MASK) >> 40) * 2.0**-24
            for c in range(9)
        ]
        for i in ids
    ]
    assert uniform(key, torch.tensor(ids), 9).tolist() == expected
    assert derive(3, "mask", 12) == splitmix(key ^ splitmix(12))


def test_one_number_is_the_first_of_a_row() -> None:
    for key in (derive(0, "a"), derive(1, "b", 2)):
        for index in (0, 7, 123_456):
            assert uniform_number(key, index) == float(uniform(key, torch.tensor([index]), 3)[0, 0])


def test_a_row_depends_on_its_own_id_and_key_alone() -> None:
    key = derive(0, "purpose")
    ids = torch.tensor([5, 9, 2])
    together = uniform(key, ids, 10)
    assert torch.equal(together, torch.cat([uniform(key, ids[i : i + 1], 10) for i in range(3)]))
    assert torch.equal(together[:, :4], uniform(key, ids, 4))
    assert torch.equal(together, uniform(key, ids, 10))


def test_every_word_and_the_order_of_words_matter() -> None:
    keys = [
        derive(0),
        derive(1),
        derive(0, "a"),
        derive(0, "b"),
        derive(0, "ab"),
        derive(0, "ba"),
        derive(0, "a", 1),
        derive(0, "a", 2),
        derive(0, "a", 1, 2),
        derive(0, "a", 2, 1),
    ]
    assert len(set(keys)) == len(keys)


def test_numbers_are_uniform_in_the_unit_interval() -> None:
    values = uniform(derive(0, "u"), torch.arange(4000), 50).flatten().double()
    assert float(values.min()) >= 0.0 and float(values.max()) < 1.0
    assert abs(float(values.mean()) - 0.5) < 0.002
    assert abs(float(values.var()) - 1 / 12) < 0.001
    counts = torch.bincount((values * 64).long(), minlength=64).double()
    expected = len(values) / 64
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 63 + 4 * (2 * 63) ** 0.5


@pytest.mark.parametrize("neighbour", ["next id", "next count", "next key", "next seed"])
def test_neighbouring_streams_are_uncorrelated(neighbour: str) -> None:
    ids, key = torch.arange(2000), derive(0, "stream", 1)
    values = uniform(key, ids, 51)
    one, other = {
        "next id": (values[:-1], values[1:]),
        "next count": (values[:, :-1], values[:, 1:]),
        "next key": (values, uniform(derive(0, "stream", 2), ids, 51)),
        "next seed": (values, uniform(derive(1, "stream", 1), ids, 51)),
    }[neighbour]
    both = torch.stack([one.flatten(), other.flatten()]).double()
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.015


def test_dropout_is_seeded_by_its_place_in_the_run() -> None:
    def draw(*place: int) -> list[float]:
        seed_dropout(*place)
        return torch.rand(4).tolist()

    places = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    drawn = [draw(*place) for place in places]
    assert len({tuple(row) for row in drawn}) == len(places)
    assert [draw(*place) for place in places] == drawn
