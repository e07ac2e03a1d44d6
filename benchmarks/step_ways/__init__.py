"""The ways to take a training step that ``step.py`` compares."""

from collections.abc import Callable

from .common import Problem, Way
from .fairseq2_wav2vec2 import fairseq2_wav2vec2
from .fairseq_hubert import fairseq_hubert
from .ours import ours, ours_compiled, ours_graphed, ours_plain
from .published import published
from .torchaudio_hubert import torchaudio_hubert
from .transformers_data2vec import transformers_data2vec
from .transformers_hubert import transformers_compiled, transformers_hubert

WAYS: dict[str, dict[str, Callable[[Problem], Way]]] = {
    "mert": {
        "ours": ours,
        "compiled": ours_compiled,
        "graphed": ours_graphed,
        "plain": ours_plain,
        "A": published,
        "R": fairseq_hubert,
        "B": transformers_hubert,
        "C": transformers_compiled,
        "D": torchaudio_hubert,
        "F": fairseq2_wav2vec2,
    },
    "music2vec": {
        "ours": ours,
        "compiled": ours_compiled,
        "graphed": ours_graphed,
        "plain": ours_plain,
        "E": transformers_data2vec,
    },
}


def build(name: str, problem: Problem) -> Way:
    """A way by its name."""
    return WAYS[problem.family][name](problem)
