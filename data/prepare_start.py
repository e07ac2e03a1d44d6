"""Begins a corpus, continues it, or finds it finished; refuses a folder that holds anything else.

`.prepare.json` in the folder says with which settings, sources and metadata it was begun.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from etude.data.errors import InputError
from etude.data.files import json_bytes, write_bytes
from etude.data.metadata import metadata_fingerprint
from etude.data.prepare_settings import PrepareSettings
from etude.data.shards import INDEX_NAME
from etude.data.sources import Scan

WORK_NAME = ".work"
"""Folder of the encoded tracks until they are in shards."""

SETTINGS_NAME = ".prepare.json"


def begin(out: Path, settings: PrepareSettings, scan: Scan, say: Callable[[str], None]) -> bool:
    """Whether there is work to do; clears what an interrupted run made of other sources."""
    path = out / SETTINGS_NAME
    finished = (out / INDEX_NAME).is_file()
    wanted = beginning(settings, scan)
    if not path.is_file():
        _refuse_strangers(out, finished)
        write_bytes(path, json_bytes(wanted))
        return True
    before = _read(path)
    # Settings that are younger than a finished corpus cannot differ from it.
    younger = wanted["settings"].keys() - before["settings"].keys()
    changes = _changes(before, wanted)
    differing = [
        f"{name} was {before['settings'][name]}, now {value}"
        for name, value in wanted["settings"].items()
        if name not in younger and before["settings"][name] != value
    ]
    if finished:
        differing += changes
    if differing:
        raise InputError(
            f"{out}: was prepared with other settings: {'; '.join(differing)}. Choose another "
            f"--out, or delete this folder first."
        )
    if finished:
        shutil.rmtree(out / WORK_NAME, ignore_errors=True)  # killed between index and cleanup
        say(f"{out} is complete, with these sources and settings: nothing to do.")
        return False
    if not changes and not younger:
        say(f"continuing the unfinished corpus in {out}")
        return True
    why = changes or [f"an older version, without {', '.join(sorted(younger))}, began it"]
    say(f"{out} was begun otherwise ({'; '.join(why)}): starting over")
    _clear(out)
    write_bytes(path, json_bytes(wanted))
    return True


def _read(path: Path) -> dict[str, Any]:
    try:
        before: dict[str, Any] = json.loads(path.read_bytes())
        if not isinstance(before["settings"], dict) or not {"sources", "files"} <= before.keys():
            raise ValueError("settings, sources and files are wanted")
        # Unlike others that are younger, these had a value before they had a name.
        before["settings"].setdefault("audio_format", "flac")
        before["settings"].setdefault("flac_md5", True)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path}: not what launch/prepare.py writes ({error!r}). Choose another --out, or "
            f"delete this folder first."
        ) from error
    return before


def beginning(settings: PrepareSettings, scan: Scan) -> dict[str, Any]:
    """All that decides the bytes of a corpus: the content of `.prepare.json`."""
    found: dict[str, Any] = {
        "settings": asdict(settings),
        "sources": scan.fingerprint(),
        "files": len(scan.sources),
    }
    metadata = metadata_fingerprint(scan)
    return found if metadata is None else {**found, "metadata": metadata}


def _changes(before: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What became of the sources since the corpus was begun, in words."""
    changes = []
    if before["sources"] != wanted["sources"]:
        same_number = before["files"] == wanted["files"]
        changes.append(
            f"the sources were {before['files']} audio files, now {wanted['files']}"
            + (" of other size or date" if same_number else "")
        )
    if before.get("metadata") != wanted.get("metadata"):
        if "metadata" not in before:
            changes.append("there was no --metadata")
        elif "metadata" not in wanted:
            changes.append("there was --metadata, now there is none")
        else:
            changes.append("the rows of --metadata changed")
    return changes


def _refuse_strangers(out: Path, finished: bool) -> None:
    strangers = sorted(file.name for file in out.glob("*.tar"))
    if finished or strangers:
        raise InputError(
            f"{out}: holds a corpus or tars ({', '.join([INDEX_NAME][:finished] + strangers)}) "
            f"that this command did not begin. Choose an empty --out."
        )


def _clear(out: Path) -> None:
    if (out / WORK_NAME).exists():
        shutil.rmtree(out / WORK_NAME)
    for split in ("train", "valid"):
        # With what a killed writer left: another plan may have fewer shards.
        for pattern in (f"{split}-*.tar", f"{split}-*.tar.part"):
            for shard in out.glob(pattern):
                shard.unlink()
