"""Shows what is in a corpus:  python launch/inspect.py CORPUS --out FILE.html

    python launch/inspect.py corpora/mine --out corpora/mine.html --json corpora/mine.json

Hours, levels, spectra, silence, copies, leaks between the splits, use of labels: as a table here,
with drawings as one self-contained page. Counts come from the index; what has to be heard is heard
of a sample, the same one every time. Damaged clips are passed over and named. docs/inspect.md says
what each figure means.
"""

if __name__ == "inspect":
    # `python launch/train.py` looks for modules in launch/ first, so everybody's `import inspect`
    # (torch, dataclasses) finds this file: hand over the standard library's, from where os is.
    import os
    import sys
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    spec = PathFinder.find_spec("inspect", [os.path.dirname(os.__file__)])
    assert spec is not None and spec.loader is not None
    sys.modules["inspect"] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules["inspect"])
else:
    import argparse
    import signal
    from pathlib import Path

    from etude.data.errors import DataError, InputError
    from etude.launch.cli import interrupt_on, run

CLIPS, SECONDS = 256, 40.0


def main() -> int:
    """Reads the command line, looks, shows."""
    arguments = _parse()
    interrupt_on(signal.SIGTERM)
    # Imported late: --help needs neither torch nor matplotlib.
    from etude.data.files import json_bytes, write_bytes
    from etude.data.inspection.figures import as_json
    from etude.data.inspection.findings import findings
    from etude.data.inspection.index import split_names
    from etude.data.inspection.labels import token_counters
    from etude.data.inspection.look import inspect_corpus
    from etude.data.inspection.text import terminal_text
    from etude.data.progress import Progress
    from etude.data.shards import open_corpus
    from etude.pretrain.inspection_kmeans import kmeans_counters

    corpus = open_corpus(arguments.corpus)
    tokens, broken = token_counters(corpus)
    kmeans, uncounted = kmeans_counters(corpus)
    problems = [*broken, *uncounted]
    total = sum(min(len(corpus.split(name)), arguments.sample) for name in split_names(corpus))
    progress = Progress("looking", total, unit="clip")
    inspection = inspect_corpus(
        corpus,
        clips=arguments.sample,
        seconds=arguments.seconds,
        listeners=[*tokens, *kmeans],
        advance=progress.advance,
    )
    print(terminal_text(inspection, found=list(findings(inspection)), problems=problems))
    if arguments.json is not None:
        content = {**as_json(inspection), "problems": problems}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(arguments.json, json_bytes(content))
        print(arguments.json)
    if arguments.out is not None:
        from etude.pretrain.report_corpus import write_corpus_report

        write_corpus_report(inspection, problems, arguments.out)
        print(arguments.out)
    if not any(sample.measures for sample in inspection.samples):
        raise DataError(
            f"{corpus.root}: not one of the clips that were looked at can be read: "
            f"{inspection.damages[0].problem}"
        )
    return 0


def _parse() -> "argparse.Namespace":
    parser = argparse.ArgumentParser(
        prog="inspect.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("corpus", type=Path, metavar="CORPUS", help="folder made by launch/prepare.py")
    add("--out", type=Path, metavar="FILE.html", help="write a page with drawings")
    add("--json", type=Path, metavar="FILE", help="write everything for other programs")
    add(
        "--sample",
        type=int,
        default=CLIPS,
        metavar="N",
        help="clips of each split to hear, spread over its shards (%(default)s)",
    )
    add(
        "--seconds",
        type=float,
        default=SECONDS,
        metavar="S",
        help="stop reading after so long, wherever it is by then (%(default)g)",
    )
    arguments = parser.parse_args()
    if arguments.sample < 1 or not arguments.seconds > 0:
        raise InputError(
            f"--sample must be at least 1 and --seconds above 0, but are {arguments.sample} and "
            f"{arguments.seconds:g}."
        )
    for option, path in (("--out", arguments.out), ("--json", arguments.json)):
        if path is not None and path.is_dir():
            raise InputError(f"{option} must be a file, but {path} is a folder.")
    return arguments


if __name__ == "__main__":
    run(main)
