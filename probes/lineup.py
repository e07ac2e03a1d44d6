"""Which models a probe hears: those asked for, then what they are compared with, each of it once.

untrained   the same architecture with fresh weights
log-mel, chroma, mfcc   hand-made features on the same frames (probes.spectra)
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import torch

from etude.data.errors import InputError
from etude.models.frames import FrameGrid
from etude.probes.features import FrozenModel
from etude.probes.frozen import (
    EncoderModel,
    HfModel,
    ModelSource,
    find_model,
    load_model,
    shape_of,
    untrained,
    untrained_hf,
)
from etude.probes.results import ModelKind, ProbedModel
from etude.probes.spectra import ChromaModel, LogMelModel, MfccModel, Spectrum

ReferenceName = Literal["untrained", "log-mel", "chroma", "mfcc"]

REFERENCES: tuple[ReferenceName, ...] = get_args(ReferenceName)

_SPECTRA: Mapping[ReferenceName, type[Spectrum]] = {
    "log-mel": LogMelModel,
    "chroma": ChromaModel,
    "mfcc": MfccModel,
}

Row = tuple[ProbedModel, FrozenModel]


def line_up(
    paths: Sequence[Path],
    *,
    references: Sequence[ReferenceName],
    seed: int,
    device: torch.device,
) -> list[Row]:
    """Loads the models, and makes what they are compared with.

    :param seed: decides fresh weights.
    :raises InputError: for a missing model, or the same one twice.
    """
    sources = [find_model(path) for path in paths]
    folders = [str(source.folder.resolve()) for source in sources]
    if not folders or len(set(folders)) < len(folders):
        raise InputError(f"expected at least one model and none twice, but got {folders}.")
    names = [source.name for source in sources]
    if len(set(names)) < len(names) or any(map(_like_a_reference, names)):
        # Rows are known by their names: only whole paths tell these apart.
        names = folders

    asked: list[Row] = []
    fresh: dict[str, Row] = {}
    spectra: dict[tuple[ReferenceName, FrameGrid], Row] = {}
    for source, name in zip(sources, names, strict=True):
        model = load_model(replace(source, name=name), device=device)
        baselines = []
        if "untrained" in references:
            shape = shape_of(model, source)
            if shape not in fresh:
                label = f"untrained {len(fresh) + 1}" if fresh else "untrained"
                fresh[shape] = _untrained(model, source, label, seed=seed, device=device)
            baselines.append(fresh[shape][0].name)
        for reference in references:
            if reference == "untrained":
                continue
            key = (reference, model.grid)
            if key not in spectra:
                before = sum(each == reference for each, _ in spectra)
                label = f"{reference} {before + 1}" if before else reference
                row = ProbedModel(label, reference, None, model.grid.sample_rate)
                spectra[key] = (row, _SPECTRA[reference](model.grid, name=label))
            baselines.append(spectra[key][0].name)
        kind: ModelKind = "huggingface" if source.format == "huggingface" else "trained"
        rate = model.grid.sample_rate
        row = ProbedModel(name, kind, str(source.folder), rate, tuple(baselines))
        asked.append((row, model))
    return [*asked, *fresh.values(), *spectra.values()]


def _like_a_reference(name: str) -> bool:
    """Whether a reference's row may have this name too, such as ``untrained`` or ``mfcc 2``."""
    return re.sub(r" \d+$", "", name) in REFERENCES


def _untrained(
    model: EncoderModel | HfModel,
    source: ModelSource,
    label: str,
    *,
    seed: int,
    device: torch.device,
) -> Row:
    row = ProbedModel(label, "untrained", None, model.grid.sample_rate)
    if isinstance(model, EncoderModel):
        return row, untrained(model, seed=seed, name=label, device=device)
    return row, untrained_hf(source, seed=seed, name=label, device=device)
