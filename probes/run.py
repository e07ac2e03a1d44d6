"""A probe run from models to results.

    line up models -> tasks and their tracks -> per model: features -> heads -> metrics, intervals

``run_probe`` asks the tasks on rendered tracks; ``probe_tasks`` asks any, wherever their tracks are
from. The tasks, their splits and their test examples are the same for all models, so that every
pair can be compared.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from etude.data.demo.render import Kind
from etude.data.errors import InputError
from etude.probes.corpus import CorpusSettings, DemoTracks
from etude.probes.demo_questions import CLIP_SECONDS
from etude.probes.feature_cache import FeatureCache
from etude.probes.heads import HeadName, HeadOptions, HeadScore, fit_head
from etude.probes.intervals import DRAWS
from etude.probes.linear import REGULARISATION
from etude.probes.lineup import REFERENCES, ReferenceName, Row, line_up
from etude.probes.problem import make_problem
from etude.probes.results import ProbeResults, TaskResult, judge
from etude.probes.task_types import AudioSource, FeatureRow, ProbeTask
from etude.probes.tasks import (
    DEFAULT_TASKS,
    TASK_KINDS,
    TASK_NAMES,
    TaskName,
    build_task,
    check_length,
)
from etude.probes.tasks import feature_rows as demo_rows

DEFAULT_TRACKS: dict[Kind, int] = {"mix": 192, "solo": 144}
"""Eight tracks of every key and of every instrument."""

_MANY_ROWS = "beat"
"""A task that has a hundred rows a clip: not stored unless it is asked for."""


def run_probe(
    models: Sequence[Path],
    *,
    out: Path,
    tasks: Sequence[TaskName] = DEFAULT_TASKS,
    tracks: int | None = None,
    seconds: float = 15.0,
    seed: int = 0,
    cache: Path | None = None,
    device: torch.device | None = None,
    heads: HeadOptions | None = None,
    references: Sequence[ReferenceName] = REFERENCES,
) -> ProbeResults:
    """Probes models on rendered tracks, beside references; writes ``out`` and returns it all.

    :param models: checkpoints, run folders or Hugging Face folders.
    :param out: folder for ``results.json`` and ``layers.png``.
    :param tracks: number of tracks of each kind; ``None``: ``DEFAULT_TRACKS``.
    :param seconds: length of a track; a clip is 5 s of it.
    :param seed: decides tracks, splits, fresh weights, heads' starts and bootstrap draws.
    :param cache: folder of rendered tracks and features, to be shared among runs; ``None``:
        ``out/corpus``.
    :param device: where models run; ``None``: a GPU where there is one.
    :param heads: which heads are fitted, and how; ``None``: linear.
    :param references: what models are compared with.
    :raises InputError: for a missing model or an impossible option.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if seed < 0 or (tracks is not None and tracks < 1):
        raise InputError(f"seed must be >= 0 and tracks >= 1, but are {seed} and {tracks}.")
    check_length(seconds)
    # Models first: a wrong path should not cost a minute of rendering.
    rows = line_up(models, references=references, seed=seed, device=device)
    cache = make_folders(out, cache)
    kinds = sorted({TASK_KINDS[name] for name in tasks})
    rate = rows[0][0].sample_rate
    sources: dict[str, DemoTracks] = {
        kind: DemoTracks(
            CorpusSettings(kind, tracks or DEFAULT_TRACKS[kind], rate, seconds, seed), cache=cache
        )
        for kind in kinds
    }
    built = [
        build_task(name, sources[TASK_KINDS[name]].labels, seconds=seconds, seed=seed)
        for name in tasks
    ]
    further = [
        demo_rows(name, sources[TASK_KINDS[name]].labels, seconds=seconds)
        for name in TASK_NAMES
        if TASK_KINDS[name] in kinds and name not in tasks and name != _MANY_ROWS
    ]
    return probe_tasks(
        rows,
        built,
        sources,
        out=out,
        cache=cache,
        seed=seed,
        device=device,
        heads=heads or HeadOptions(),
        settings={
            "seed": seed,
            "tracks": {kind: source.num_tracks for kind, source in sources.items()},
            "seconds": seconds,
            "clip_seconds": CLIP_SECONDS,
        },
        also=further,
    )


def make_folders(out: Path, cache: Path | None) -> Path:
    """Makes the folders of a probe; returns the cache, ``out/corpus`` where none is given.

    :raises InputError: if one of them cannot be a folder.
    """
    cache = cache or out / "corpus"
    for option, folder in (("--out", out), ("--cache", cache)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{option} must be a folder, but {folder} cannot be made one: {error.strerror}."
            ) from error
    return cache


def probe_tasks(
    rows: Sequence[Row],
    tasks: Sequence[ProbeTask],
    sources: Mapping[str, AudioSource],
    *,
    out: Path,
    cache: Path,
    seed: int,
    device: torch.device,
    heads: HeadOptions,
    settings: Mapping[str, Any],
    also: Sequence[tuple[FeatureRow, ...]] = (),
) -> ProbeResults:
    """Asks tasks of models that are loaded already; writes ``out`` and returns it all.

    :param rows: from :func:`line_up`.
    :param sources: by name, all that the tasks' clips are from.
    :param out: an existing folder.
    :param cache: folder of the features.
    :param settings: what else decided the tasks, for ``results.json``.
    :param also: rows of features that a later probe may want.
    """
    store = FeatureCache(cache, sources, device=device)
    scores: dict[str, dict[HeadName, dict[str, HeadScore]]] = {
        task.name: {head: {} for head in heads.names} for task in tasks
    }
    for row, model in rows:
        wanted = [task.feature_rows for task in tasks]
        features = store.features(model, wanted, also=also)
        for task, features_LND in zip(tasks, features, strict=True):
            problem = make_problem(task, features_LND)
            for head in heads.names:
                scores[task.name][head][row.name] = fit_head(
                    head, problem, task, heads, seed=seed, device=device
                )
        print(f"probed {row.name}", flush=True)
    print(f"features: {store.counts} ({cache})", flush=True)

    probed = tuple(row for row, _ in rows)
    results: dict[str, TaskResult] = {
        task.name: judge(task, scores[task.name], probed, seed=seed) for task in tasks
    }
    found = ProbeResults(
        settings={
            **settings,
            "heads": list(heads.names),
            "head_seeds": heads.seeds if "mlp" in heads.names else 1,
            "weighted_sum": heads.weighted_sum,
            "regularisation": list(REGULARISATION),
            "bootstrap_draws": DRAWS,
        },
        models=probed,
        tasks=results,
    )
    found.write(out)
    return found
