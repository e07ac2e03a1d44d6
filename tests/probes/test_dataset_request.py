from pathlib import Path

import pytest

from etude.data.errors import InputError
from etude.probes.datasets.request import by_dataset, parse_folders, tasks_of


def test_folders_are_taken_by_the_name_of_their_data_set() -> None:
    folders = parse_folders(["gtzan=/data/GTZAN", "nsynth=a=b"])
    assert folders == {"gtzan": Path("/data/GTZAN"), "nsynth": Path("a=b")}
    assert tasks_of(folders) == ["gtzan_genre", "nsynth_instrument", "nsynth_pitch"]


@pytest.mark.parametrize("text", ["gtzan", "gtzan=", "=/data", "gtzam=/data", "gtzan_genre=/data"])
def test_another_form_or_name_is_told_with_the_known_names(text: str) -> None:
    with pytest.raises(InputError, match="NAME=FOLDER .* gtzan, giantsteps, .* but is"):
        parse_folders([text])


def test_a_name_that_comes_twice_is_told() -> None:
    with pytest.raises(InputError, match="gtzan is given twice: a and b"):
        parse_folders(["gtzan=a", "gtzan=b"])


def test_a_task_without_its_data_set_says_what_to_give() -> None:
    with pytest.raises(InputError, match="nsynth_pitch needs .* --data nsynth=FOLDER"):
        by_dataset(["gtzan_genre", "nsynth_pitch"], {"gtzan": Path("a")})


def test_a_data_set_without_a_task_is_told_with_its_tasks() -> None:
    with pytest.raises(
        InputError, match="--data nsynth is given.* nsynth_instrument, nsynth_pitch"
    ):
        by_dataset(["gtzan_genre"], {"gtzan": Path("a"), "nsynth": Path("b")})
