"""What kind of file system a path lies on."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_NETWORK = {
    *("nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "smb3", "ceph", "glusterfs", "afs"),
    *("9p", "virtiofs", "wekafs", "panfs", "pvfs2", "orangefs", "gfs2", "ocfs2", "daosfs"),
}
_LOCAL_FUSE = {"fuse.lxcfs", "fuse.fuse-overlayfs", "fuseblk", "fuse.mergerfs"}


class Mount(NamedTuple):
    """A line of ``/proc/mounts``."""

    source: str
    place: Path
    kind: str

    @property
    def is_network(self) -> bool:
        """Whether it looks like a network file system; any FUSE but the known local ones does."""
        fuse = self.kind.startswith("fuse") and self.kind not in _LOCAL_FUSE
        return self.kind in _NETWORK or fuse


def read_mounts(text: str) -> list[Mount]:
    """The lines of ``/proc/mounts``, in which blanks are written as octal numbers."""
    mounts = []
    for line in text.splitlines():
        source, place, kind = (
            word.replace("\\040", " ").replace("\\011", "\t") for word in line.split()[:3]
        )
        mounts.append(Mount(source, Path(place), kind))
    return mounts


def mount_of(path: Path, mounts: Sequence[Mount] | None = None) -> Mount:
    """The mount that holds ``path``, which need not exist."""
    if mounts is None:
        mounts = read_mounts(Path("/proc/mounts").read_text())
    absolute = Path(os.path.realpath(path))
    holding = [mount for mount in mounts if absolute.is_relative_to(mount.place)]
    # The last of several at one place hides those before it.
    return max(
        enumerate(holding),
        key=lambda item: (len(item[1].place.parts), item[0]),
        default=(0, Mount("unknown", Path("/"), "unknown")),
    )[1]


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the nearest above it that exists."""
    path = Path(os.path.realpath(path.expanduser()))
    return next(folder for folder in (path, *path.parents) if folder.is_dir())
