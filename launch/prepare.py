"""Audio files or folders -> a corpus of WebDataset shards.

    python launch/prepare.py ~/Music --out corpora/mine
    python launch/prepare.py --demo --out corpora/demo --demo-minutes 30
    python launch/prepare.py --verify --out corpora/mine
    torchrun --nproc-per-node 4 launch/prepare.py ~/Music --out corpora/mine

Reads wav, flac, mp3, ogg, opus, aiff (and m4a where PyAV is installed), makes them mono at one
rate, cuts them into clips, and holds some tracks out. A JSON file of the same stem beside an audio
file is carried along as its labels. The same command again continues an interrupted run and does
nothing to a finished one. report.json in the folder says what became of every file.
"""

import argparse
import os
import signal
from pathlib import Path

from etude.data.clip_format import EXTENSIONS
from etude.data.errors import InputError
from etude.data.index import verify
from etude.data.prepare import prepare
from etude.data.prepare_ranks import place_from_environment
from etude.data.prepare_settings import PrepareSettings
from etude.data.progress import Progress
from etude.launch.cli import interrupt_on, run
from etude.pretrain.launchers import follow_launchers


def main() -> None:
    """Reads the command line and prepares, renders and prepares, or verifies."""
    place = place_from_environment(os.environ)
    options = _parser(place.count).parse_args()
    interrupt_on(signal.SIGTERM)
    if place.count > 1:
        follow_launchers()
        if options.demo:
            raise InputError("--demo renders in one process: start it without a launcher.")
    if options.verify:
        if options.sources or options.demo:
            raise InputError("--verify reads the corpus in --out: give it alone.")
        if place.rank:
            return
        corpus = verify(options.out, print)
        print(f"{options.out} is whole: {len(corpus.shards)} shards, {corpus.fingerprint[:12]}")
        return
    if options.demo and options.sources:
        raise InputError("give either SOURCE or --demo, not both.")
    if not options.demo and not options.sources:
        raise InputError("give at least one SOURCE: a folder with music, or --demo.")
    if options.workers < 0:
        raise InputError(f"--workers must be at least 0, but is {options.workers}.")
    if not options.wait_minutes > 0:
        raise InputError(f"--wait-minutes must be above 0, but is {options.wait_minutes:g}.")
    settings = PrepareSettings(
        sample_rate=options.sample_rate,
        clip_seconds=options.clip_seconds,
        min_seconds=options.min_seconds,
        shard_mb=options.shard_mb,
        valid_fraction=options.valid_fraction,
        max_valid_hours=options.max_valid_hours,
        seed=options.seed,
        group_by=options.group_by,
        audio_format=options.audio_format,
        flac_md5=not options.skip_flac_md5,
    )
    roots: list[Path] = options.sources
    if options.demo:
        roots = [_render_demo(options.out, options.demo_minutes, options.seed, options.workers)]
    prepare(
        roots,
        options.out,
        settings,
        workers=options.workers,
        metadata=options.metadata,
        place=place,
        patience_seconds=60 * options.wait_minutes,
    )


def _cores_of_this_rank(ranks: int) -> int:
    """Ranks of one machine share its cores, by what torchrun, DeepSpeed or Slurm say of them."""
    cores = len(os.sched_getaffinity(0))
    if ranks == 1:
        return cores
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "SLURM_NTASKS_PER_NODE"):
        if os.environ.get(name, "").isdigit():
            return max(1, cores // int(os.environ[name]))
    return cores


def _render_demo(out: Path, minutes: float, seed: int, workers: int) -> Path:
    # Imported here: rendering is not needed to pack a user's music.
    from etude.data.demo.files import write_demo_files

    folder = out / "source"
    folder.mkdir(parents=True, exist_ok=True)
    bar: list[Progress] = []

    def progress(done: int, total: int) -> None:
        if not bar:
            bar.append(Progress("rendering", total, unit="file"))
        bar[0].advance_to(done)

    write_demo_files(folder, minutes=minutes, seed=seed, workers=max(1, workers), progress=progress)
    return folder


def _parser(ranks: int) -> argparse.ArgumentParser:
    defaults = PrepareSettings()
    parser = argparse.ArgumentParser(
        prog="prepare.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("sources", nargs="*", type=Path, metavar="SOURCE", help="audio files or folders")
    add("--out", required=True, type=Path, metavar="DIR", help="folder that takes the corpus")
    add("--sample-rate", type=int, default=defaults.sample_rate, help="hertz (%(default)s)")
    add("--clip-seconds", type=float, default=defaults.clip_seconds, help="(%(default)s)")
    add(
        "--min-seconds",
        type=float,
        default=defaults.min_seconds,
        help="shorter files are skipped as too_short (%(default)s)",
    )
    add("--shard-mb", type=float, default=defaults.shard_mb, help="10^6 bytes (%(default)s)")
    add(
        "--valid-fraction",
        type=float,
        default=defaults.valid_fraction,
        help="share of the audio held out, whole artists at a time (%(default)s)",
    )
    add(
        "--max-valid-hours",
        type=float,
        default=defaults.max_valid_hours,
        help="upper bound of what is held out (%(default)s)",
    )
    add(
        "--metadata",
        type=Path,
        metavar="FILE",
        help="CSV or JSONL with a column `file`; the others travel into every clip's JSON",
    )
    add(
        "--group-by",
        default=defaults.group_by,
        metavar="COLUMN",
        help="tracks that share this column of --metadata or this tag (artist, album) are held "
        "out together; none: each alone (%(default)s)",
    )
    add(
        "--audio-format",
        default=defaults.audio_format,
        choices=sorted(EXTENSIONS),
        help="of the clips: flac, or pcm16 (WAV), which takes 1.6 times the disk and is read "
        "several times as fast (%(default)s)",
    )
    add(
        "--skip-flac-md5",
        action="store_true",
        help="do not compare a FLAC file's samples with the MD5 that it states, which takes a "
        "fifth of the time of reading it; for files that were checked before",
    )
    add(
        "--workers",
        type=int,
        default=_cores_of_this_rank(ranks),
        help="processes of each rank; 0 works in this one (%(default)s); the result does not "
        "depend on it",
    )
    add(
        "--wait-minutes",
        type=float,
        default=30.0,
        metavar="M",
        help="under a launcher: how long a rank waits for others while nothing moves (%(default)s)",
    )
    add("--seed", type=int, default=defaults.seed, help="which tracks are held out; demo music")
    add("--demo", action="store_true", help="render the labelled demo corpus and pack it")
    add("--demo-minutes", type=float, default=30.0, metavar="M", help="(%(default)s)")
    add("--verify", action="store_true", help="read every byte of the corpus in --out")
    add("--local_rank", type=int, help=argparse.SUPPRESS)  # of the deepspeed command
    return parser


if __name__ == "__main__":
    run(main)
