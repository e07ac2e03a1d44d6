"""A probe run from models to results.

    find models -> render or reopen corpora -> tasks -> per model: features -> probes -> intervals

Models that hear different sample rates get corpora of their own rate; the tasks, their splits and
their test examples are the same for all, so that every pair can be compared.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from etude.data.demo.render import Kind
from etude.data.errors import InputError
from etude.probes.corpus import Corpus, CorpusSettings, open_corpus
from etude.probes.features import FrozenModel, extract
from etude.probes.frozen import EncoderModel, LogMelModel, find_model, load_model, untrained
from etude.probes.intervals import DRAWS, accuracy_interval, difference_interval
from etude.probes.linear import REGULARISATION, ProbeScore, SplitRows, probe_layers
from etude.probes.results import Difference, ProbedModel, ProbeResults, TaskResult
from etude.probes.tasks import (
    CLIP_SECONDS,
    TASK_KINDS,
    TASK_NAMES,
    ProbeTask,
    TaskName,
    build_task,
)

DEFAULT_TRACKS: dict[Kind, int] = {"mix": 192, "solo": 144}
"""Eight tracks of every key and of every instrument."""


def run_probe(
    models: Sequence[Path],
    *,
    out: Path,
    tasks: Sequence[TaskName] = TASK_NAMES,
    tracks: int | None = None,
    seconds: float = 15.0,
    seed: int = 0,
    cache: Path | None = None,
    device: torch.device | None = None,
) -> ProbeResults:
    """Probes models beside their untrained selves and log-mel; writes ``out`` and returns it all.

    :param models: checkpoints, run folders or Hugging Face folders.
    :param out: folder for ``results.json`` and ``layers.png``.
    :param tracks: number of tracks of each kind; ``None``: ``DEFAULT_TRACKS``.
    :param seconds: length of a track; a clip is 5 s of it.
    :param seed: decides tracks, splits, fresh weights and bootstrap draws.
    :param cache: folder of rendered tracks, to be shared among runs; ``None``: ``out/corpus``.
    :param device: where encoders run; ``None``: a GPU where there is one.
    :raises InputError: for a missing model or an impossible option.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if seed < 0 or (tracks is not None and tracks < 1):
        raise InputError(f"seed must be >= 0 and tracks >= 1, but are {seed} and {tracks}.")
    # Models first: a wrong path should not cost a minute of rendering.
    rows = _load_models(models, seed=seed, device=device)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise InputError(f"the results need a folder, but {out} is a file.") from error

    kinds = sorted({TASK_KINDS[name] for name in tasks})
    corpora: dict[int, dict[Kind, Corpus]] = {}
    for rate in sorted({row.sample_rate for row, _ in rows}):
        corpora[rate] = {
            kind: open_corpus(
                CorpusSettings(kind, tracks or DEFAULT_TRACKS[kind], rate, seconds, seed),
                cache=cache or out / "corpus",
            )
            for kind in kinds
        }
    # The labels are the same at every rate.
    by_kind = next(iter(corpora.values()))
    built = [
        build_task(name, by_kind[TASK_KINDS[name]].labels, seconds=seconds, seed=seed)
        for name in tasks
    ]

    scores: dict[TaskName, dict[str, ProbeScore]] = {name: {} for name in tasks}
    for row, model in rows:
        features = extract(model, built, corpora[row.sample_rate])
        for task in built:
            split_rows = SplitRows(task.rows("train"), task.rows("valid"), task.rows("test"))
            score = probe_layers(features[task.name], task.labels, split_rows)
            scores[task.name][row.name] = score
        print(f"probed {row.name}", flush=True)

    probed = tuple(row for row, _ in rows)
    results = ProbeResults(
        settings={
            "seed": seed,
            "tracks": {kind: corpus.settings.tracks for kind, corpus in by_kind.items()},
            "seconds": seconds,
            "clip_seconds": CLIP_SECONDS,
            "regularisation": list(REGULARISATION),
            "bootstrap_draws": DRAWS,
        },
        models=probed,
        tasks={task.name: _judge(task, scores[task.name], probed, seed=seed) for task in built},
    )
    results.write(out)
    return results


def _load_models(
    paths: Sequence[Path], *, seed: int, device: torch.device
) -> list[tuple[ProbedModel, FrozenModel]]:
    """The models asked for, then what they are compared with, each of those once."""
    sources = [find_model(path) for path in paths]
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        # Folders of equal names: only whole paths tell them apart.
        names = [str(source.folder) for source in sources]
    if not names or len(set(names)) < len(names):
        raise InputError(f"expected at least one model and none twice, but got {names}.")

    models: list[tuple[ProbedModel, FrozenModel]] = []
    fresh: dict[str, tuple[ProbedModel, FrozenModel]] = {}
    spectra: dict[str, tuple[ProbedModel, FrozenModel]] = {}
    for source, name in zip(sources, names, strict=True):
        model = load_model(replace(source, name=name), device=device)
        rate = model.grid.sample_rate
        baselines = []
        if isinstance(model, EncoderModel):
            settings = model.encoder.config.model_dump_json()
            if settings not in fresh:
                label = f"untrained {len(fresh) + 1}" if fresh else "untrained"
                control = untrained(model, seed=seed, name=label, device=device)
                fresh[settings] = (ProbedModel(label, "untrained", None, rate), control)
            baselines.append(fresh[settings][0].name)
        grid = repr(model.grid)
        if grid not in spectra:
            label = f"log-mel {len(spectra) + 1}" if spectra else "log-mel"
            spectrum = LogMelModel(model.grid, name=label)
            spectra[grid] = (ProbedModel(label, "log-mel", None, rate), spectrum)
        baselines.append(spectra[grid][0].name)
        kind = source.format if source.format == "huggingface" else "trained"
        row = ProbedModel(name, kind, str(source.folder), rate, tuple(baselines))
        models.append((row, model))
    return [*models, *fresh.values(), *spectra.values()]


def _judge(
    task: ProbeTask, scores: dict[str, ProbeScore], models: Sequence[ProbedModel], *, seed: int
) -> TaskResult:
    tracks = task.tracks[task.rows("test")]
    correct = {name: score.chosen.test_correct for name, score in scores.items()}
    return TaskResult(
        task,
        scores,
        {name: accuracy_interval(right, tracks, seed=seed) for name, right in correct.items()},
        tuple(
            Difference(
                model.name,
                baseline,
                difference_interval(correct[model.name], correct[baseline], tracks, seed=seed),
            )
            for model in models
            for baseline in model.baselines
        ),
    )
