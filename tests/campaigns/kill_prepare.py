"""Kills `launch/prepare.py` at random instants and compares what the same command then makes of it.

    python tests/campaigns/kill_prepare.py --kills 10 --seed 0
    python tests/campaigns/kill_prepare.py --kills 10 --ranks 2

A small mixed collection (several kinds of file, tags, metadata, a copy, one that is too short) is
prepared once undisturbed. Then, for every kill: the command starts in an empty folder, its whole
process group gets SIGKILL, the command runs again to its end, and every byte of the corpus is
compared. The instants are spread over the undisturbed run, from its first file to its end: one at
random in each of equally long parts, told by the clock and by the count of finished files in turn;
every third kill falls into the writing of a shard. Prints a table; status 1 if any byte differs.
"""

import argparse
import bisect
import contextlib
import functools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "data")]

from prepare_parts import collection, content, tagged  # noqa: E402

OPTIONS = ("--clip-seconds", "4", "--min-seconds", "2", "--shard-mb", "1.5")


@dataclass(frozen=True)
class Kill:
    """What one kill met, and what became of the corpus."""

    after: float
    """Seconds since the command was started."""
    records: int
    """Tracks that were packed by then."""
    shards: int
    stage: str
    differing: tuple[str, ...]
    """Files that are not those of the undisturbed run, and what should not be there."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10, metavar="N", help="(%(default)s)")
    parser.add_argument("--ranks", type=int, default=1, help="processes under one launch")
    parser.add_argument("--workers", type=int, default=2, help="of each rank (%(default)s)")
    parser.add_argument("--tracks", type=int, default=16, help="of the collection (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kill-prepare-") as folder:
        kills = campaign(
            Path(folder),
            kills=options.kills,
            ranks=options.ranks,
            workers=options.workers,
            tracks=options.tracks,
            seed=options.seed,
        )
    bad = sum(bool(kill.differing) for kill in kills)
    print(f"{len(kills)} kills, {len(kills) - bad} corpora of the same bytes, {bad} of others")
    return 1 if bad else 0


def campaign(
    folder: Path, *, kills: int, ranks: int, workers: int, tracks: int, seed: int
) -> list[Kill]:
    """Runs all of it in ``folder``, a line per kill on the way."""
    sources = make_sources(folder, tracks)
    whole = folder / "undisturbed"
    command = (*sources, "--workers", str(workers), *OPTIONS)
    times = undisturbed(command, whole, ranks)
    expected = content(whole)
    print(
        f"undisturbed: {times[-1] - times[0]:.1f} s from the first file to the end, "
        f"{ranks} rank(s), {len([name for name in expected if name.endswith('.tar')])} shards, "
        f"{sum(map(len, expected.values())) / 1e6:.1f} MB"
    )
    print("  kill  after s  tracks  shards  stage         then")
    instants = random.Random(seed)
    found = []
    for number in range(kills):
        share = (number + instants.random()) / kills
        out = folder / f"killed-{number}"
        if number % 3 == 2:
            shards = instants.randrange(sum(name.endswith(".tar") for name in expected))
            trigger, delay = functools.partial(has_begun, shards=shards + 1), 0.0
        else:
            files, delay = instant(times, share, by_clock=number % 3 == 0)
            trigger = functools.partial(has_finished, files=files)
        found.append(one_kill(command, out, ranks, trigger, delay, expected))
        kill = found[-1]
        then = f"DIFFERS: {', '.join(kill.differing)}" if kill.differing else "same bytes"
        print(
            f"  {number:>4}  {kill.after:>7.2f}  {kill.records:>6}  {kill.shards:>6}  "
            f"{kill.stage:<12}  {then}",
            flush=True,
        )
    return found


def one_kill(
    command: Sequence[str],
    out: Path,
    ranks: int,
    trigger: Callable[[Path], bool],
    delay: float,
    expected: dict[str, bytes],
) -> Kill:
    """Starts, kills ``delay`` seconds after ``trigger(out)`` holds, runs again, compares."""
    started = time.monotonic()
    processes = start(command, out, ranks)
    while not trigger(out) and any(process.poll() is None for process in processes):
        time.sleep(0.001)
    time.sleep(delay)
    after = time.monotonic() - started
    with contextlib.suppress(ProcessLookupError):
        os.killpg(processes[0].pid, signal.SIGKILL)
    ended = [process.wait() for process in processes]
    records, shards = len(list(out.glob(".work/*.json"))), len(list(out.glob("*.tar")))
    stage = (
        "finished"
        if not any(ended)
        else "cleaning up"
        if (out / "index.json").exists()
        else "writing"
        if shards
        else "packing"
    )
    differing = failures(start(command, out, ranks))
    made = content(out)
    differing += [name for name in sorted(made | expected) if made.get(name) != expected.get(name)]
    differing += [path.name for path in out.iterdir() if path.is_dir()]
    return Kill(after, records, shards, stage, tuple(differing))


def undisturbed(command: Sequence[str], out: Path, ranks: int) -> list[float]:
    """Runs to the end; when the first, second ... file was finished, and the end itself."""
    processes = start(command, out, ranks)
    times: list[float] = []
    while any(process.poll() is None for process in processes):
        while has_finished(out, files=len(times) + 1):
            times.append(time.monotonic())
        time.sleep(0.001)
    if errors := failures(processes):
        sys.exit("\n".join(errors))
    return [*times, time.monotonic()]


def instant(times: Sequence[float], share: float, *, by_clock: bool) -> tuple[int, float]:
    """(finished files, seconds after the last of them) at a share of the undisturbed run.

    Told by files and not by the time since the start alone: a busy machine moves the others.
    """
    if by_clock:
        moment = times[0] + share * (times[-1] - times[0])
        files = bisect.bisect_right(times, moment)
        return files, moment - times[files - 1]
    exact = 1 + share * (len(times) - 1)
    files = int(exact)
    return files, (exact - files) * (times[files] - times[files - 1])


def has_finished(out: Path, *, files: int) -> bool:
    """Whether so many have their names: the note of the settings, records, shards, the index."""
    patterns = (".prepare.json", ".work/*.json", "*.tar", "report.json", "*.npy")
    return sum(len(list(out.glob(pattern))) for pattern in patterns) >= files


def has_begun(out: Path, *, shards: int) -> bool:
    """Whether so many shards exist under any name: the last of them is being written."""
    return len({path.name.removesuffix(".part") for path in out.glob("*.tar*")}) >= shards


def start(command: Sequence[str], out: Path, ranks: int) -> list[subprocess.Popen[str]]:
    """All ranks of one launch, in a process group of their own, as a launcher starts them."""
    processes: list[subprocess.Popen[str]] = []
    for rank in range(ranks):
        place = {"RANK": str(rank), "WORLD_SIZE": str(ranks)} if ranks > 1 else {}
        processes.append(
            subprocess.Popen(
                [sys.executable, "launch/prepare.py", *command, "--out", str(out)],
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | place,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                process_group=processes[0].pid if processes else 0,
            )
        )
    return processes


def make_sources(folder: Path, tracks: int) -> list[str]:
    """A collection with tags and a table; the arguments that name it."""
    music = collection(folder / "music", tracks)
    for number in range(4):
        path = music / "tagged" / f"{number}.flac"
        tagged(path, 6, seed=100 + number, artist=f"artist {number // 2}")
    rows = [{"file": f"tagged/{n}.flac", "licence": ("CC0", "CC BY 4.0")[n % 2]} for n in range(4)]
    table = folder / "about.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return [str(music), "--metadata", str(table)]


def failures(processes: Sequence[subprocess.Popen[str]]) -> list[str]:
    """Waits for all; the last line of those that did not end well."""
    ends = [(process.communicate()[1], process.returncode) for process in processes]
    return [f"status {status}: {stderr.strip()[-200:]!r}" for stderr, status in ends if status]


if __name__ == "__main__":
    sys.exit(main())
