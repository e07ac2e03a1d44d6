"""The questions that are shipped are read, with all their variants, and say how to ask them."""

from pathlib import Path

import pytest

from etude.pretrain.sweeps.question import Question
from etude.pretrain.sweeps.runs import all_runs

FOLDER = Path(__file__).parents[2] / "configs" / "ablations" / "questions"
QUESTIONS = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("path", QUESTIONS, ids=[path.stem for path in QUESTIONS])
def test_a_shipped_question_is_one_and_says_how_to_ask_it(path: Path) -> None:
    question = Question(path)  # checks every variant, and that no two are the same
    assert len(all_runs(question)) == 3 * len(question.variants)
    head = path.read_text().split("question:")[0]
    assert f"launch/sweep.py configs/ablations/questions/{path.name}" in head


def test_no_two_questions_share_a_folder() -> None:
    folders = [Question(path).folder for path in QUESTIONS]
    assert len(folders) >= 13 and len(set(folders)) == len(folders)
