from collections import Counter

from etude.probes.splits import FRACTIONS, SPLITS, split_tracks


def deal(num_tracks: int, num_classes: int, *, seed: int = 0) -> list[str]:
    labels = [track % num_classes for track in range(num_tracks)]
    return list(split_tracks(labels, [frozenset({label}) for label in labels], seed=seed))


def test_shares_are_as_wanted_in_total_and_even_within_each_class() -> None:
    splits = deal(192, 24)
    for split in SPLITS:
        assert abs(splits.count(split) - 192 * FRACTIONS[split]) < 1
    tests = Counter(track % 24 for track, split in enumerate(splits) if split == "test")
    assert set(tests.values()) <= {2, 3, 4}


def test_every_class_trains_however_few_its_tracks() -> None:
    for num_tracks in (24, 30, 50, 77):
        splits = deal(num_tracks, 24)
        assert {track % 24 for track in range(num_tracks) if splits[track] == "train"} == set(
            range(24)
        )


def test_a_label_outside_the_strata_trains_too() -> None:
    # Forty tracks of one stratum; each of the labels 0 .. 39 occurs in one track alone.
    splits = split_tracks(["solo"] * 40, [frozenset({track}) for track in range(40)], seed=0)
    assert set(splits) == {"train"}


def test_the_seed_decides() -> None:
    assert deal(96, 24) == deal(96, 24)
    assert deal(96, 24) != deal(96, 24, seed=1)
