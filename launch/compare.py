"""Draws runs side by side: ``python launch/compare.py RUN [RUN...] --out FILE.html``.

One self-contained page: how the configurations differ, curves with what costs nothing beside them
and what our own runs looked like behind them, health, cost, and probes where there are any. One run
alone makes a page too.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from etude.data.errors import InputError
from etude.launch import cli

if TYPE_CHECKING:
    from etude.pretrain.curves import ReferenceCurve

_CURVES = Path(__file__).resolve().parents[1] / "docs" / "curves"
"""What came with the code."""


def main() -> int:
    """Parses the command line and writes the page."""
    arguments = _parser().parse_args()
    # Imported late: --help needs no matplotlib.
    from etude.pretrain.report import write_report
    from etude.pretrain.report_probe import ProbeReport, read_probe
    from etude.pretrain.report_run import read_run, told_apart
    from etude.pretrain.report_table import held_out_table

    if arguments.out.is_dir():
        raise InputError(
            f"--out must be a file such as report.html, but {arguments.out} is a folder."
        )
    runs = told_apart([read_run(folder) for folder in arguments.runs])
    probes: list[tuple[str, ProbeReport]] = []
    for run in runs:
        if probe := read_probe(run.folder / "probe"):
            probes.append((run.name, probe))
    for folder in arguments.probe:
        if (probe := read_probe(folder)) is None:
            raise InputError(
                f"--probe must be a folder made by launch/probe.py, but {folder} has no "
                "results.json."
            )
        probes.append((str(folder), probe))
    write_report(runs, probes, arguments.out, curves=_read_curves(arguments.curves))
    if table := held_out_table(runs):
        print(f"\n{table}\n")
    print(arguments.out)
    return 0


def _read_curves(word: str | None) -> "list[ReferenceCurve]":
    from etude.pretrain.curves import read_curves

    if word == "none":
        return []
    folder = _CURVES if word is None else Path(word)
    if word is not None and not folder.is_dir():
        raise InputError(
            f"--curves must be a folder of files made by launch/save_curve.py, or `none`, but "
            f"there is no folder {word}."
        )
    return read_curves(folder)  # none where Etude was installed without its docs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launch/compare.py",
        description="One self-contained HTML page with the curves, configurations and probes of "
        "runs.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folder of a run")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.html", help="the page")
    parser.add_argument(
        "--probe",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="further results of launch/probe.py (RUN/probe is shown by itself)",
    )
    parser.add_argument(
        "--curves",
        metavar="DIR|none",
        help="reference curves to draw behind runs of the same objective (default: docs/curves)",
    )
    return parser


if __name__ == "__main__":
    cli.run(main)
