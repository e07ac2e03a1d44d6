"""The runs of a sweep as one Slurm array: a task per run, each as ``launch/train.sbatch`` does it.

The head is that file's own, so that what was adapted there holds here: nodes, GPUs, time, the
warning before the end, requeueing. The body hands each task its run and becomes that script.
"""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from etude.pretrain.sweeps.question import Question
from etude.pretrain.sweeps.runs import SweepRun

_OWN = ("--job-name", "--output", "--array")


def array_script(question: Question, runs: Sequence[SweepRun], template: Path) -> str:
    """The script.

    :param runs: those that are not done.
    :param template: ``launch/train.sbatch``.
    """
    directives = [line for line in template.read_text().splitlines() if line.startswith("#SBATCH ")]
    kept = [line for line in directives if not line.split()[1].startswith(_OWN)]
    folders = "\n".join(f"  {shlex.quote(os.path.abspath(run.folder))}" for run in runs)
    return f"""#!/bin/bash
# {question.text}
# Made by launch/sweep.py from {question.path} and {template}: one task per run.
#SBATCH --job-name=etude-sweep
#SBATCH --array=0-{len(runs) - 1}
#SBATCH --output=%x-%A_%a.log
{chr(10).join(kept)}

set -u
runs=(
{folders}
)
run="${{runs[$SLURM_ARRAY_TASK_ID]}}"
cd {shlex.quote(os.getcwd())} || exit 2
exec bash {shlex.quote(str(template))} "$run/run.yaml" run.dir="$run"
"""
