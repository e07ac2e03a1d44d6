"""What became of every file: ``report.json`` for scripts, a few lines for people."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, final

from etude.data.prepare_track import Track
from etude.data.shards import Corpus
from etude.data.sources import Finding, Scan

_SHOWN = 3


@final
@dataclass(frozen=True)
class Report:
    """Every audio file found is either packed or in ``skipped``."""

    found: int
    packed: int
    other_files: int
    skipped: tuple[Finding, ...]
    noted: tuple[Finding, ...]

    def as_json(self) -> dict[str, Any]:
        """The content of ``report.json``."""
        return {
            "found": self.found,
            "packed": self.packed,
            "other_files": self.other_files,
            "skipped_reasons": dict(sorted(Counter(f.reason for f in self.skipped).items())),
            "noted_reasons": dict(sorted(Counter(f.reason for f in self.noted).items())),
            "skipped": [asdict(finding) for finding in self.skipped],
            "noted": [asdict(finding) for finding in self.noted],
        }


def make_report(scan: Scan, tracks: Sequence[Track], copies: dict[str, str], packed: int) -> Report:
    """What became of all files; ``copies`` has the name of the same audio for a track's id."""
    skipped = list(scan.skipped)
    noted = list(scan.noted)
    for track in tracks:
        if track.skipped is not None:
            skipped.append(track.skipped)
        elif track.id in copies:
            same = f"the same audio as {copies[track.id]}"
            skipped.append(Finding(track.name, "duplicate", same))
        else:
            noted.extend(track.notes)
    skipped.sort(key=lambda finding: finding.file)
    found = len(scan.sources) + len(scan.skipped)
    return Report(found, packed, scan.other_files, tuple(skipped), tuple(noted))


def describe_findings(findings: Sequence[Finding]) -> list[str]:
    """One line per reason, the commonest first, with a few examples."""
    lines: list[str] = []
    for reason, count in Counter(finding.reason for finding in findings).most_common():
        files = [printable(PurePosixPath(f.file).name) for f in findings if f.reason == reason][
            :_SHOWN
        ]
        more = f" and {count - len(files)} more" if count > len(files) else ""
        lines.append(f"    {reason:<16} {count:>6}   {', '.join(files)}{more}")
    return lines


def describe(corpus: Corpus, report: Report, groups: str) -> str:
    """The summary at the end of a run; ``groups`` says what was held out together."""
    lines = [f"Corpus in {corpus.root} ({corpus.sample_rate} Hz, mono, 16 bit)"]
    for split in ("train", "valid"):
        shards = [shard for shard in corpus.shards if shard.split == split]
        clips = sum(shard.samples for shard in shards)
        size = sum(shard.bytes for shard in shards) / 1e6
        counts = f"{clips:>7} clips in {len(shards)} shards"
        lines.append(
            f"  {split:<6} {_duration(corpus.seconds(split)):>11}  {counts}, {size:.1f} MB"
        )
    lines.append(
        f"  files  {report.found} found, {report.packed} packed, {len(report.skipped)} skipped; "
        f"{report.other_files} other files left alone"
    )
    lines.append(f"  split  {groups}")
    if corpus.licences:
        lines.append("  licences")
        lines += [f"    {_duration(s):>11}  {name}" for name, s in corpus.licences.items()]
    if report.skipped:
        lines += ["  skipped", *describe_findings(report.skipped)]
    if report.noted:
        lines += ["  noted", *describe_findings(report.noted)]
    if report.skipped or report.noted:
        lines.append(f"  every file by name: {corpus.root / 'report.json'}")
    if not corpus.seconds("valid"):
        lines.append(
            "  no valid split: it needs two tracks of different groups (--group-by none: any two) "
            "and a --valid-fraction above 0"
        )
    lines.append(f"Next: python launch/train.py CONFIG data.corpus={corpus.root}")
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def printable(name: str) -> str:
    """A file name that any terminal can show; names on a disk need not be valid Unicode."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def report_path(root: Path) -> Path:
    """Where the report lies."""
    return root / "report.json"
