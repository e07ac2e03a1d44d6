"""Asks a question of several runs:  python launch/sweep.py QUESTION.yaml

Trains every variant with every seed, one run after another, probes them all, and ends in a table
and a page with a verdict: DIR/table.json, DIR/table.md, DIR/compare.html. The same command again
continues an interrupted sweep and repeats nothing. docs/ablations.md has an example.
"""

import argparse
import shlex
import sys
from pathlib import Path

from etude.data.errors import InputError
from etude.data.files import write_bytes
from etude.launch.cli import STOPS, end_on, interrupt_on, print_error, run
from etude.launch.run_config import check_probe
from etude.pretrain.run_folder import RunFolder
from etude.pretrain.sweeps.plan import describe_sweep
from etude.pretrain.sweeps.question import Question
from etude.pretrain.sweeps.runs import SweepRun, all_runs
from etude.pretrain.sweeps.slurm import array_script
from etude.pretrain.sweeps.training import Failure, train_runs
from etude.probes.tasks import DEFAULT_TASKS, TASK_NAMES, TaskName

HERE = Path(__file__).parent


def main() -> int:
    """Reads the question, trains, probes, judges."""
    arguments = _parse()
    end_on(*STOPS)
    question = Question(arguments.question)
    tasks = _tasks(question)
    runs = all_runs(question)
    for each in runs:
        check_probe(each.config)
    chosen = _chosen(question, runs, arguments.only)
    if arguments.dry_run:
        print("\n".join(describe_sweep(question, chosen)))
        return 0
    if arguments.slurm is not None:
        return _write_array(question, chosen, arguments)

    RunFolder(question.folder).lock()  # two sweeps of one question would meet in their runs
    interrupt_on(*STOPS)
    failures: list[Failure] = []
    if not arguments.no_train:
        command = [*arguments.launcher, str(HERE / "train.py")]
        failures = train_runs(chosen, command, STOPS)
    # Heavy imports only now; a signal meanwhile must not vanish in them.
    end_on(*STOPS)
    from etude.launch.sweep_results import answer, probe_runs, write_answer

    interrupt_on(*STOPS)
    probe_runs(question, tasks, [each for each in chosen if each.state == "done"])
    made = answer(question, tasks, runs)
    if made.rows:
        write_answer(made)
        print(f"\n{made.text()}\n\n{question.folder / 'compare.html'}")
    else:
        print("no run is done yet: there is nothing to compare")
    if failures:
        print_error(" ".join(f"{failure}." for failure in failures))
        return failures[0].status
    return 0


def _write_array(
    question: Question, runs: tuple[SweepRun, ...], arguments: argparse.Namespace
) -> int:
    template = HERE / "train.sbatch"
    if not Path("launch/train.py").is_file():
        raise InputError(
            f"{template} starts launch/train.py: give --slurm in the project's own folder."
        )
    left = tuple(each for each in runs if each.state != "done")
    again = shlex.join(["python", "launch/sweep.py", str(arguments.question)])
    if not left:
        print(f"all runs are done; to finish:\n  {again}")
        return 0
    for each in left:
        each.write_config()
    write_bytes(arguments.slurm, array_script(question, left, template).encode())
    print(
        f"{arguments.slurm}: {len(left)} of {len(runs)} runs, one task each. To submit, and to "
        "finish once all of them have ended:\n"
        f"  job=$(sbatch --parsable {shlex.quote(str(arguments.slurm))})\n"
        f"  sbatch --dependency=afterany:$job --wrap {shlex.quote(again + ' --no-train')}"
    )
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="launch/sweep.py",
        description="Trains variants of a run with several seeds, probes them and compares them.",
        epilog="What a QUESTION.yaml holds: docs/ablations.md, configs/ablations/questions/.",
    )
    parser.add_argument("question", metavar="QUESTION.yaml", type=Path, help="what is asked")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print the plan, stop"
    )
    parser.add_argument(
        "--only", metavar="VARIANT", help="train and probe this variant's runs alone"
    )
    parser.add_argument(
        "--no-train", action="store_true", help="probe and compare the runs that are done"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--launcher",
        metavar='"WORDS"',
        type=shlex.split,
        default=[sys.executable],
        help='what starts each run, such as "deepspeed --num_gpus 2" (default: this python)',
    )
    where.add_argument(
        "--slurm",
        metavar="OUT.sbatch",
        type=Path,
        help="train nothing here: write the runs as a Slurm array",
    )
    return parser.parse_args()


def _tasks(question: Question) -> list[TaskName]:
    asked = question.probe.tasks or DEFAULT_TASKS
    if unknown := [name for name in asked if name not in TASK_NAMES]:
        raise InputError(
            f"`probe.tasks` in {question.path} must be among {', '.join(TASK_NAMES)}, but names "
            f"{', '.join(unknown)}."
        )
    return [name for name in TASK_NAMES if name in asked]


def _chosen(
    question: Question, runs: tuple[SweepRun, ...], only: str | None
) -> tuple[SweepRun, ...]:
    if only is None:
        return runs
    if only not in question.variants:
        raise InputError(
            f"--only must name a variant of {question.path} ({', '.join(question.variants)}), but "
            f"is {only}."
        )
    return tuple(each for each in runs if each.variant == only)


if __name__ == "__main__":
    run(main)
