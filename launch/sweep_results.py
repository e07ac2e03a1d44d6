"""From finished runs to an answer: probe them, pair them by seed, judge, write table and page.

It stands here because it joins what may not know of one another: ``pretrain`` has the runs and the
words of a verdict, ``probes`` the answers and their intervals.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from etude.pretrain.report import write_report
from etude.pretrain.report_probe import read_probe
from etude.pretrain.report_run import read_run
from etude.pretrain.sweeps.held_out import comparable_targets, held_out_losses
from etude.pretrain.sweeps.question import Question
from etude.pretrain.sweeps.runs import SweepRun
from etude.pretrain.sweeps.table import RunRow, SweepTable
from etude.pretrain.sweeps.verdict import Measure, Verdict
from etude.probes.comparison import Answers, ProbeFolder, paired_difference, read_answers
from etude.probes.frozen import find_model
from etude.probes.intervals import trainings_interval
from etude.probes.run import DEFAULT_TRACKS, run_probe
from etude.probes.tasks import TASK_KINDS, TaskName


@dataclass(frozen=True)
class _Judged:
    """A run with all that it is judged by."""

    run: SweepRun
    answers: Mapping[str, Answers]
    losses: Mapping[str, float]


def probe_runs(question: Question, tasks: Sequence[TaskName], runs: Sequence[SweepRun]) -> None:
    """Probes the finished runs that have no results of their last checkpoint and these options."""
    options = question.probe
    left = [run for run in runs if not _is_probed(question, tasks, run)]
    for number, run in enumerate(left, start=1):
        print(f"[{number}/{len(left)}] probing {run.name}", flush=True)
        run_probe(
            [run.folder],
            out=run.probe,
            tasks=tasks,
            tracks=options.tracks,
            seconds=options.seconds,
            seed=options.seed,
            cache=question.probe_cache,
        )


def answer(question: Question, tasks: Sequence[TaskName], runs: Sequence[SweepRun]) -> SweepTable:
    """Judges all runs that are done and probed; the rest is missing."""
    done = {
        (run.variant, run.seed): _Judged(run, found.tasks, held_out_losses(run))
        for run in runs
        if run.state == "done" and (found := _probed(question, tasks, run)) is not None
    }
    rows = []
    for judged in done.values():
        values = {_accuracy(task): judged.answers[task].accuracy for task in tasks}
        values |= {_loss(target): loss for target, loss in judged.losses.items()}
        rows.append(RunRow(judged.run, values))
    verdicts: list[Verdict] = []
    for variant in question.variants:
        if variant == question.reference:
            continue
        pairs = {
            seed: (done[variant, seed], done[question.reference, seed])
            for seed in question.seeds
            if (variant, seed) in done and (question.reference, seed) in done
        }
        if pairs:
            verdicts += _probe_verdicts(question, variant, tasks, pairs)
            verdicts += _loss_verdicts(variant, pairs)
    missing = tuple(run for run in runs if (run.variant, run.seed) not in done)
    return SweepTable(question, tuple(rows), tuple(verdicts), missing)


def write_answer(made: SweepTable) -> None:
    """Writes ``table.json``, ``table.md`` and ``compare.html`` into the question's folder."""
    folder = made.question.folder
    made.write(folder)
    shown = [(row.run.name, row.run) for row in made.rows]
    probes = [(name, probe) for name, run in shown if (probe := read_probe(run.probe))]
    write_report(
        [replace(read_run(run.folder), name=name) for name, run in shown],
        probes,
        folder / "compare.html",
        title=made.question.text,
        lead=made.html(),
    )


_Pairs = Mapping[int, tuple[_Judged, _Judged]]


def _probe_verdicts(
    question: Question, variant: str, tasks: Sequence[TaskName], pairs: _Pairs
) -> Iterator[Verdict]:
    for task in tasks:
        ours = [one.answers[task] for one, _ in pairs.values()]
        theirs = [other.answers[task] for _, other in pairs.values()]
        interval = paired_difference(ours, theirs, seed=question.probe.seed)
        yield Verdict(
            variant,
            _accuracy(task),
            {seed: a.accuracy - b.accuracy for seed, a, b in zip(pairs, ours, theirs, strict=True)},
            interval.value,
            (interval.low, interval.high),
            len(ours[0].tracks_T),
        )


def _loss_verdicts(variant: str, pairs: _Pairs) -> Iterator[Verdict]:
    one, other = next(iter(pairs.values()))
    for target in comparable_targets(one.run.config, other.run.config):
        if not all(target in run.losses for pair in pairs.values() for run in pair):
            continue
        by_seed = {s: a.losses[target] - b.losses[target] for s, (a, b) in pairs.items()}
        differences = np.array(list(by_seed.values()))
        ends = None
        if len(differences) > 1:
            interval = trainings_interval(differences)
            ends = interval.low, interval.high
        value = float(differences.mean())
        yield Verdict(variant, _loss(target), by_seed, value, ends, None)


def _accuracy(task: str) -> Measure:
    return Measure(f"{task} accuracy", higher_is_better=True)


def _loss(target: str) -> Measure:
    return Measure(f"held-out {target} loss", higher_is_better=False)


def _is_probed(question: Question, tasks: Sequence[TaskName], run: SweepRun) -> bool:
    return _probed(question, tasks, run) is not None


def _probed(question: Question, tasks: Sequence[TaskName], run: SweepRun) -> ProbeFolder | None:
    """A run's results, if they are of its last checkpoint and were made with these options."""
    found = read_answers(run.probe)
    if found is None:
        return None
    options = question.probe
    wanted = {
        "seed": options.seed,
        "seconds": options.seconds,
        "tracks": {
            kind: options.tracks or DEFAULT_TRACKS[kind]
            for kind in sorted({TASK_KINDS[task] for task in tasks})
        },
    }
    same = all(found.settings.get(key) == value for key, value in wanted.items())
    current = found.checkpoint == find_model(run.folder).folder.name
    return found if same and current and tuple(found.tasks) == tuple(tasks) else None
