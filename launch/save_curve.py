"""Keeps finished runs as a reference: ``python launch/save_curve.py RUN... --out NAME.json``.

The runs differ in their seed alone. ``launch/compare.py`` draws the curve, from the lowest to the
highest of them, behind any run with the same objective.
"""

import argparse
from pathlib import Path

from etude.data.errors import InputError
from etude.data.files import write_bytes
from etude.launch import cli


def main() -> int:
    """Parses the command line and writes the file."""
    arguments = _parser().parse_args()
    from etude.pretrain.curves import make_curve
    from etude.pretrain.report_run import read_run

    out: Path = arguments.out
    if out.suffix != ".json" or out.is_dir():
        raise InputError(f"--out must be a file NAME.json, but is {out}.")
    runs = [read_run(folder) for folder in arguments.runs]
    curve = make_curve(runs, name=out.stem, commit=arguments.commit, hardware=arguments.hardware)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, curve.json_bytes())
    print(f"{out}: {len(runs)} seeds, {curve.updates[-1]:,} updates, {len(curve.metrics)} metrics")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launch/save_curve.py",
        description="Keeps finished runs that differ in their seed alone as a reference curve.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folder of a run")
    parser.add_argument("--out", type=Path, required=True, metavar="NAME.json", help="the curve")
    # A run does not know them.
    parser.add_argument(
        "--commit", required=True, metavar="HASH", help="of the code that trained them"
    )
    parser.add_argument(
        "--hardware", required=True, metavar="WORDS", help="what they were trained on"
    )
    return parser


if __name__ == "__main__":
    cli.run(main)
