"""Signals at random instants: a run must end with a checkpoint, and continue as if nothing were.

    python tests/campaigns/signals.py [--count 40] [--seed S] [--launchers python "torchrun 2"]

SIGTERM, SIGUSR1 or SIGINT, some of them twice, to one rank, to the launcher or to every process of
a tiny but real run, under plain python, torchrun, deepspeed.launcher.launch and deepspeed: while it
starts, trains, validates or saves. Then

    it ends          all its processes, within the seconds below; nothing is left behind
    it says how      EXIT.json has 75, a reason and a checkpoint, which is whole and of the last
                     update in the metrics; before the first update, that nothing is to be saved
    it continues     the same command ends with status 0; every update is in the metrics once, and
                     metrics and weights are, bit for bit, those of a run that was left alone

A signal that comes before Python has read the script has its default effect, and nothing is said.
The phase in the table is the one that was seen at the signal, not the one that was aimed at.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

sys.path[:0] = [str(Path(__file__).parents[1])]

from campaigns.launched import LAUNCHERS, Launched, has_child  # noqa: E402
from campaigns.tiny_runs import (  # noqa: E402
    EVERY,
    PARADIGMS,
    TRAIN,
    UPDATES,
    VALID_EVERY,
    lines,
    make_corpus,
    write_recipe,
)

from etude.data.files import file_sha256  # noqa: E402
from etude.pretrain.checkpoint import find_damage  # noqa: E402

ENDS_WITHIN = 25.0
"""Seconds from a signal to the end of the last process, on a busy machine. Launchers kill 30 s
after they have passed a signal on: what comes to that did not end by itself."""
ORPHANS_WITHIN = 5.0
"""Seconds that processes may outlive their launcher, unless the signal itself killed that."""
LATEST = 40
"""Update after which no signal is sent: the run might be done before it is answered."""

Phase = Literal["start-up", "training", "validation", "saving"]
PHASES: tuple[Phase, ...] = ("start-up", "training", "validation", "saving")
Target = Literal["rank", "launcher", "group"]
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
Since = Literal["command", "ranks", "child"]
"""Of a start-up: since the command was given, all ranks are there, or one has a loader worker."""


@dataclass(frozen=True)
class Case:
    """One signal, or two, to be sent."""

    launcher: str
    paradigm: str
    target: Target
    rank: int
    """Which, if a rank is the target."""
    phase: Phase
    since: Since
    step: int
    """Updates after which the phase is looked for."""
    share: float
    """Of the phase that is over, in [0, 1)."""
    number: signal.Signals
    again: float | None
    """Seconds after which it is sent a second time."""


@dataclass(frozen=True)
class Reference:
    """A run that was left alone."""

    metrics: dict[int, dict[str, Any]]
    weights: str
    """The sha256 of its encoder's file."""
    start: float
    """Seconds from the first sight of all ranks to the first update."""
    update: float
    """Seconds per update."""
    validation: float
    """Seconds that a validation adds."""


@dataclass
class Outcome:
    """What a signal met, and what became of the run."""

    case: Case
    phase: Phase
    listened: bool
    """Whether all ranks had come so far as to answer signals."""
    status: int = 0
    """Of the command."""
    seconds: float = 0.0
    """From the signal to the end of the last process."""
    told: str = ""
    """How the run ended, and where that was said."""
    mistakes: list[str] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--launchers", nargs="+", default=list(LAUNCHERS), choices=list(LAUNCHERS))
    parser.add_argument("--paradigms", nargs="+", default=list(PARADIGMS), choices=list(PARADIGMS))
    parser.add_argument("--phases", nargs="+", default=list(PHASES), choices=PHASES)
    options = parser.parse_args()
    # Started in the background of a shell, this ignores it, and so would every run.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    cases = draw(options.count, options.launchers, options.paradigms, options.phases, options.seed)
    began = time.monotonic()
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="signals-") as folder:
        # Many short clips: validation takes long enough to be met.
        corpus = make_corpus(Path(folder), clip_seconds=2.0, held_out=0.5)
        references: dict[tuple[str, int], Reference] = {}
        for number, case in enumerate(cases):
            recipe = write_recipe(Path(folder), case.paradigm, corpus, dropout=0.1)
            kind = case.paradigm, LAUNCHERS[case.launcher]
            if kind not in references:
                references[kind] = refer(recipe, LAUNCHERS[case.launcher])
            run = Path(folder, f"run{number}")
            outcomes.append(interrupt(case, recipe, run, references[kind]))
            outcomes[-1].mistakes += finish(case.launcher, recipe, run, references[kind])
            shutil.rmtree(run, ignore_errors=True)
            print(f"{number:>3} {describe(outcomes[-1])}", flush=True)
    print_table(outcomes)
    wrong = sum(bool(outcome.mistakes) for outcome in outcomes)
    print(f"{len(outcomes)} cases, {wrong} wrong, {time.monotonic() - began:.0f} s")
    return 1 if wrong else 0


def draw(
    count: int,
    launchers: Sequence[str],
    paradigms: Sequence[str],
    phases: Sequence[Phase],
    seed: int,
) -> list[Case]:
    """Cases in which every launcher meets every phase, and each of its targets in turn."""
    generator = random.Random(seed)
    pairs: list[tuple[str, Phase]] = []
    targets: dict[str, list[Target]] = {launcher: [] for launcher in launchers}
    cases = []
    for _ in range(count):
        if not pairs:
            pairs = [(launcher, phase) for launcher in launchers for phase in phases]
            generator.shuffle(pairs)
        launcher, phase = pairs.pop()
        if not targets[launcher]:
            targets[launcher] = ["rank", "group"]
            if launcher != "python":
                targets[launcher].append("launcher")
            generator.shuffle(targets[launcher])
        target = targets[launcher].pop()
        since: list[Since] = ["ranks", "child"]
        if target != "rank":
            since.append("command")
        step = generator.randrange(1, LATEST)
        cases.append(
            Case(
                launcher=launcher,
                paradigm=generator.choice(paradigms),
                target=target,
                rank=generator.randrange(LAUNCHERS[launcher]),
                phase=phase,
                since=generator.choice(since),
                # A validation is one of the update after it.
                step=step // VALID_EVERY * VALID_EVERY + 5 if phase == "validation" else step,
                share=generator.random(),
                number=generator.choice(SIGNALS),
                again=generator.uniform(0.0, 0.5) if generator.random() < 0.3 else None,
            )
        )
    return cases


def refer(recipe: Path, ranks: int) -> Reference:
    """Runs a recipe undisturbed and takes its times."""
    run = recipe.with_name(f"{recipe.stem}-alone-{ranks}")
    launched = Launched("python" if ranks == 1 else f"torchrun {ranks}", recipe, run)
    launched.wait(launched.is_complete)
    times = [time.monotonic()]
    while launched.wait(lambda: launched.updates >= len(times)):
        times.append(time.monotonic())
    if launched.command.returncode:
        raise SystemExit(f"the run that is left alone failed: {launched.said}")
    gaps = {step: times[step] - times[step - 1] for step in range(2, len(times))}
    # A save falls between the line of its update and the next.
    plain = [gaps[step] for step in gaps if step % VALID_EVERY and step % EVERY != 1]
    validated = [gaps[step] for step in gaps if step % VALID_EVERY == 0]
    update = statistics.median(plain)
    return Reference(
        metrics={line["step"]: line for line in lines(run)},
        weights=weights_of(run),
        start=times[1] - times[0],
        update=update,
        validation=max(0.0, statistics.median(validated) - update),
    )


def interrupt(case: Case, recipe: Path, run: Path, reference: Reference) -> Outcome:
    """Starts or continues a run, sends the signal, and looks at how it ends."""
    launched = Launched(case.launcher, recipe, run)
    phase = aim(case, launched, reference)
    outcome = Outcome(case, phase, listened=launched.listens())
    send(case, launched)
    if case.again is not None:
        time.sleep(case.again)
        send(case, launched)
    command_seconds, seconds = launched.end(3 * ENDS_WITHIN)
    outcome.seconds = seconds + (case.again or 0.0)
    outcome.status = launched.command.returncode
    judge(outcome, launched, orphaned=seconds - command_seconds)
    if outcome.mistakes:
        outcome.mistakes.append(f"it had said: {launched.said[-4000:]}")
    return outcome


def aim(case: Case, launched: Launched, reference: Reference) -> Phase:
    """Waits for an instant of the phase; returns the phase that is then to be seen."""
    match case.phase:
        case "start-up" if case.since == "command":
            time.sleep(case.share * reference.start)
        case "start-up":
            launched.wait(launched.is_complete)
            ranks = launched.ranks().values()
            if case.since == "ranks":
                time.sleep(case.share * reference.start)
            else:
                launched.wait(lambda: any(map(has_child, ranks)))
                time.sleep(case.share * reference.update)
        case "training":
            launched.wait(lambda: launched.updates >= case.step and not launched.is_saving)
            time.sleep(case.share * reference.update / 2)  # and not into the next save
        case "validation":
            launched.wait(lambda: launched.updates >= case.step)
            time.sleep(reference.update + case.share * reference.validation)
        case "saving":
            launched.wait(lambda: launched.updates >= case.step and launched.is_saving)
            time.sleep(case.share * reference.update / 2)
    updates, saving = launched.updates, launched.is_saving
    if updates == 0:
        return "start-up"
    if case.phase == "validation" and updates == case.step:
        return "validation"  # longer than an update since the line of the one before
    return "saving" if saving else "training"


def send(case: Case, launched: Launched) -> None:
    """Sends the signal, to whoever of its targets is still there."""
    with contextlib.suppress(ProcessLookupError, KeyError):
        if case.target == "launcher":
            launched.command.send_signal(case.number)
        elif case.target == "rank":
            os.kill(launched.ranks()[case.rank], case.number)
        else:
            # torchrun gives each rank a group of its own; Slurm signals them all.
            for group in {os.getpgid(pid) for pid in launched.processes()}:
                os.killpg(group, case.number)


def judge(outcome: Outcome, launched: Launched, *, orphaned: float) -> None:
    """Notes what is wrong with how a run ended.

    :param orphaned: seconds that processes outlived the command.
    """
    wrong, said, status = outcome.mistakes, launched.said, outcome.status
    if outcome.seconds > ENDS_WITHIN:
        wrong.append(f"its last process ended only after {outcome.seconds:.1f} s")
    if status >= 0 and orphaned > ORPHANS_WITHIN:
        wrong.append(f"processes outlived the command by {orphaned:.1f} s")
    if status == 0 or (outcome.case.launcher == "python" and outcome.listened and status != 75):
        wrong.append(f"the command ended with status {status}")
    errors = said.count("\nerror: ") + said.startswith("error: ")
    if errors > 1 or (outcome.listened and errors == 0):
        wrong.append(f"{errors} errors were told")
    if outcome.listened and f'File "{TRAIN}"' in said:
        wrong.append("it ended in a traceback")
    if drafts := sorted(path.name for path in launched.run.glob("checkpoints/*.tmp")):
        wrong.append(f"drafts stay: {drafts}")
    exit_file = launched.run / "EXIT.json"
    if exit_file.exists():
        judge_exit(outcome, json.loads(exit_file.read_text()), launched)
        return
    heard = "error: interrupted; run the same command again" in said
    outcome.told = "stderr: interrupted" if heard else "nothing"
    if launched.updates:
        wrong.append(f"no EXIT.json, although there were {launched.updates} updates")
    elif outcome.listened and not heard:
        wrong.append("nothing was said")


def judge_exit(outcome: Outcome, end: dict[str, Any], launched: Launched) -> None:
    """Notes what is wrong with EXIT.json and the checkpoint it names."""
    wrong, step = outcome.mistakes, end["step"]
    outcome.told = f"EXIT.json: {end['code']} at {step}"
    if end["code"] != 75:
        wrong.append(f"EXIT.json has {end['code']}: {end['reason']}")
    logged = [line["step"] for line in lines(launched.run)]
    if step != (logged[-1] if logged else 0):
        wrong.append(f"EXIT.json tells of update {step}, the metrics end with {logged[-1:]}")
    if step == 0:
        if "nothing to save" not in end["reason"] or end["last_good_checkpoint"]:
            wrong.append(f"before the first update EXIT.json has {end}")
        return
    checkpoint = Path(end["last_good_checkpoint"] or "none")
    if checkpoint.name != f"step-{step:08d}":
        wrong.append(f"EXIT.json names {checkpoint} at update {step}")
    elif damage := find_damage(checkpoint):
        wrong.append(f"{checkpoint}: {damage}")
    elif f"{checkpoint} is published" not in launched.said:
        wrong.append("the checkpoint was not told")


def finish(launcher: str, recipe: Path, run: Path, reference: Reference) -> list[str]:
    """Gives the command again; what is wrong with the whole run, beside one that was left alone."""
    wrong = []
    launched = Launched(launcher, recipe, run)
    try:
        status = launched.command.wait(300)
    except subprocess.TimeoutExpired:
        status = -1
    if status or "error: " in launched.said:
        wrong.append(f"then it ended with status {status}: {launched.said[-4000:]}")
    if launched.end(ORPHANS_WITHIN)[1] >= ORPHANS_WITHIN:
        wrong.append("then it left processes behind")
    written = list(lines(run))
    if [line["step"] for line in written] != list(range(1, UPDATES + 1)):
        wrong.append("then lines of metrics are missing or double")
    wrong += [
        f"then {key} of update {line['step']} is {line.get(key)}, not {value}"
        for line in written
        for key, value in reference.metrics[line["step"]].items()
        if not key.startswith("perf/") and line.get(key) != value
    ][:1]
    if not status and weights_of(run) != reference.weights:
        wrong.append("then the weights are others")
    return wrong


def weights_of(run: Path) -> str:
    return file_sha256(run / "checkpoints" / f"step-{UPDATES:08d}" / "encoder.safetensors")


def describe(outcome: Outcome) -> str:
    case = outcome.case
    target = f"rank {case.rank}" if case.target == "rank" else case.target
    number = case.number.name + ("" if case.again is None else f" twice, {case.again:.2f} s apart")
    heard = "" if outcome.listened else ", before all ranks listened"
    text = (
        f"{case.launcher}, {number} to the {target} in {outcome.phase}{heard}: "
        f"{outcome.seconds:.1f} s, status {outcome.status}, {outcome.told}"
    )
    return "\n    ".join([text, *outcome.mistakes])


def print_table(outcomes: Sequence[Outcome]) -> None:
    """Launcher and target by phase: cases, and how many of them went wrong."""
    print(f"{'':<22}" + "".join(f"{phase:>14}" for phase in PHASES) + f"{'longest':>12}")
    rows = sorted({(outcome.case.launcher, outcome.case.target) for outcome in outcomes})
    for row in rows:
        of_row = [one for one in outcomes if (one.case.launcher, one.case.target) == row]
        cells = []
        for phase in PHASES:
            found = [one for one in of_row if one.phase == phase]
            wrong = sum(bool(one.mistakes) for one in found)
            cells.append(f"{len(found)}" + (f", {wrong} wrong" if wrong else ""))
        longest = max(one.seconds for one in of_row)
        name = f"{row[0]}, {row[1]}"
        print(f"{name:<22}" + "".join(f"{c:>14}" for c in cells) + f"{longest:>10.1f} s")
    early = [one for one in outcomes if not one.listened]
    print(
        f"{len(early)} before all ranks listened; "
        f"{sum(one.told.startswith('stderr') for one in outcomes)} told on stderr alone"
    )


if __name__ == "__main__":
    sys.exit(main())
