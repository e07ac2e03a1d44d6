"""Packed codes are the codes, whatever number of codebooks of whatever size."""

import numpy as np
import numpy.typing as npt
import pytest

from etude.data.packing import Packing


def random_codes(random: np.random.Generator) -> tuple[npt.NDArray[np.uint16], int]:
    """Codes with the first and the last one of each size among them, and the size."""
    size, codebooks = int(random.integers(2, 4097)), int(random.integers(1, 33))
    codes = random.integers(size, size=(random.integers(0, 40), codebooks), dtype=np.uint16)
    codes[::3] = size - 1
    codes[1::3] = 0
    return codes, size


@pytest.mark.parametrize("seed", range(60))
def test_unpacked_codes_are_those_that_were_packed(seed: int) -> None:
    codes, size = random_codes(np.random.default_rng(seed))
    frames, codebooks = codes.shape
    packing = Packing.of(codebooks, size)
    assert 2 ** (packing.bits - 1) < size <= 2**packing.bits
    rows = packing.pack(codes)
    assert rows.dtype == np.uint8
    assert rows.shape == (frames, int(np.ceil(codebooks * packing.bits / 8)))
    again = packing.unpack(rows)
    assert again.dtype == np.uint16 and np.array_equal(again, codes)
    part = slice(frames // 3, frames // 2)
    assert np.array_equal(packing.unpack(rows[part]), codes[part])


@pytest.mark.parametrize("seed", range(20))
def test_three_lines_of_numpy_read_them_too(seed: int) -> None:
    """Those of docs/codec.md."""
    codes, size = random_codes(np.random.default_rng(seed))
    codebooks, bits = codes.shape[1], int(np.ceil(np.log2(size)))
    rows = Packing.of(codebooks, size).pack(codes)
    flat = np.unpackbits(rows, axis=1, count=codebooks * bits)
    each = flat.reshape(len(rows), codebooks, bits)
    read = each @ (1 << np.arange(bits)[::-1])
    assert np.array_equal(read, codes)


@pytest.mark.parametrize("size", [2, 3, 4, 255, 256, 257, 1024, 1025, 4096, 65_536])
def test_sizes_around_powers_of_two_take_the_bits_that_they_need(size: int) -> None:
    packing = Packing.of(5, size)
    assert packing.bits == int(np.ceil(np.log2(size)))
    codes = np.full((3, 5), size - 1, np.uint16)
    assert np.array_equal(packing.unpack(packing.pack(codes)), codes)


def test_the_first_codebook_comes_first_and_its_highest_bit_before_all() -> None:
    packing = Packing.of(3, 8)
    assert packing.pack(np.array([[0b100, 0b011, 0b001]], np.uint16)).tolist() == [
        [0b10001100, 0b10000000]
    ]
    assert Packing.of(8, 1024).row_bytes == 10


def test_codes_that_do_not_fit_are_refused_and_not_cut() -> None:
    with pytest.raises(ValueError, match="codes of 10 bits, but one is 1024"):
        Packing.of(2, 1024).pack(np.array([[0, 1024]], np.uint16))


@pytest.mark.parametrize("bit", range(4))
def test_a_bit_behind_the_last_code_is_noticed(bit: int) -> None:
    packing = Packing.of(2, 1024)
    rows = packing.pack(np.full((5, 2), 1023, np.uint16))
    rows[3, -1] |= 1 << bit
    with pytest.raises(ValueError, match="the last 4 bits of a row are not zero"):
        packing.unpack(rows)
    packing.unpack(rows[:3])
