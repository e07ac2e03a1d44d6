"""Lengths that are quick to transform."""


def next_smooth(number: int) -> int:
    """Smallest number from ``number`` on that has no prime factor above 7."""
    while True:
        rest = number
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return number
        number += 1
