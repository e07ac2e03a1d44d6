"""What is installed, against what ``pyproject.toml`` asks for."""

import hashlib
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import etude.data
import etude.models
import etude.pretrain
from etude.pretrain.doctor.rows import Row, failed, ok

_PROJECT = "etude-music"
_BUILT_FOR_TORCH = ("fairseq2", "fairseq2n")
"""Their own requirements are part of the question: a wheel for another torch crashes."""

TOLD = (
    *("torch", "fairseq2", "fairseq2n", "deepspeed", "transformers", "webdataset", "encodec"),
    *("nnAudio", "numpy"),
)
"""Packages whose versions are told; all that are required are checked."""


def own_requirements() -> list[str]:
    """The installed project's requirements, those of fairseq2's binary part included."""
    found = list(metadata.requires(_PROJECT) or [])
    for package in _BUILT_FOR_TORCH:
        try:
            required = metadata.requires(package) or []
        except metadata.PackageNotFoundError:
            continue  # its own row says so
        found += [line for line in required if Requirement(line).name in ("torch", "fairseq2n")]
    return found


def own_python() -> str:
    """The range of Python versions that the project asks for."""
    return str(metadata.metadata(_PROJECT)["Requires-Python"])


def installed_versions(packages: Iterable[str] = TOLD) -> dict[str, str]:
    """Version by package, of those that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def check_versions(requirements: Iterable[str], python: str) -> Row:
    """Whether everything that is required is there, in a version that was tested.

    :param requirements: as in ``pyproject.toml``; those of extras are passed over.
    :param python: the range of Python's own versions.
    """
    wrong = []
    if not SpecifierSet(python).contains(platform.python_version(), prereleases=True):
        wrong.append(f"python {platform.python_version()}, but {python} is needed")
    for line in requirements:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing, {requirement.specifier} is needed")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version}, but {requirement.specifier} is needed")
    if wrong:
        advice = "`make install`, or `pip install -e .` in this environment"
        return failed("versions", "; ".join(dict.fromkeys(wrong)), advice)
    versions = {"python": platform.python_version(), **installed_versions()}
    return ok("versions", ", ".join(f"{name} {version}" for name, version in versions.items()))


def code_fingerprint() -> str:
    """Of the project's own code as it is imported: nodes may have checkouts of their own."""
    digest = hashlib.sha256()
    for package in (etude.data, etude.models, etude.pretrain):
        root = Path(next(iter(package.__path__)))
        for path in sorted(root.rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def same_everywhere(told: Mapping[int, Mapping[str, str]]) -> dict[str, dict[str, list[int]]]:
    """What differs between ranks: by name, each value with its ranks, the commonest first."""
    differing = {}
    for name in dict.fromkeys(name for values in told.values() for name in values):
        by_value: dict[str, list[int]] = {}
        for rank, values in told.items():
            by_value.setdefault(values.get(name, "none"), []).append(rank)
        if len(by_value) > 1:
            common_first = sorted(by_value.items(), key=lambda item: -len(item[1]))
            differing[name] = dict(common_first)
    return differing
