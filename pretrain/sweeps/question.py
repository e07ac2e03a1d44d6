"""A question in one file: variants of a run, each trained with the same seeds, and what is asked.

    question: Does the CQT target help?
    base: ../../quickstart.yaml            # a run's config, relative to this file
    dir: runs/sweeps/cqt
    seeds: [0, 1, 2]
    reference: with_cqt                    # what the others are compared with; else the first
    variants:
      with_cqt: {}
      without_cqt: {objective.targets.cqt: null}
    set: {train.max_steps: 500}            # for all variants
    probe: {tasks: [key, pitch]}           # options of launch/probe.py

Everything is read, and every variant's config checked, before anything runs.
"""

import copy
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from etude.pretrain.config import Config
from etude.pretrain.config_file import as_values, flatten, load_config, parse_yaml
from etude.pretrain.config_types import Count, Natural, Positive, Section
from etude.pretrain.errors import ConfigError

_FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_OURS = ("run.dir", "seed")
"""What the sweep itself sets for every run."""


class ProbeOptions(Section):
    """How every run is probed; the words are those of ``launch/probe.py``."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """What is asked of the features; ``None``: what the probe asks by default."""

    tracks: Count | None = None
    """Tracks of each kind; ``None``: the probe's own number."""

    seconds: Positive = 15.0
    """Length of a track."""

    seed: Natural = 0
    """Tracks, splits, bootstrap: the same for every run, so that answers can be paired."""

    cache: Path | None = None
    """Folder of rendered tracks; ``None``: ``probe-corpus`` in the sweep's folder."""


class _QuestionFile(Section):
    """The file, key by key."""

    question: Annotated[str, Field(min_length=1)]
    base: Path
    dir: Path
    seeds: Annotated[tuple[Natural, ...], Field(min_length=1)]
    variants: Annotated[dict[str, dict[str, Any] | None], Field(min_length=2)]
    reference: str | None = None
    set: dict[str, Any] = {}
    probe: ProbeOptions = ProbeOptions()


class Question:
    """A checked question.

    :param path: its file.
    :raises ConfigError: in words for the user, naming the variant where it is one's own.
    """

    def __init__(self, path: Path) -> None:
        file = _read(path)
        self.path = path
        self.text = " ".join(file.question.split())
        self.folder = file.dir
        self.seeds = file.seeds
        self.variants = tuple(file.variants)
        self.probe = file.probe
        self.probe_cache = file.probe.cache or file.dir / "probe-corpus"
        self._base = path.parent / file.base
        self._shared = nested(file.set)
        self._changes = {name: nested(given or {}) for name, given in file.variants.items()}
        self.reference = self.variants[0] if file.reference is None else file.reference
        self._check()

    def config(self, variant: str, seed: int) -> Config:
        """One run's whole config."""
        ours = {"seed": seed, "run": {"dir": str(self.folder / variant / f"seed-{seed}")}}
        changes = (
            (f"`set` of {self.path}", self._shared),
            (f"variant `{variant}` of {self.path}", self._changes[variant]),
            (str(self.path), ours),
        )
        if not self._base.is_file():
            load_config(self._base)  # says what lies near
        try:
            return load_config(self._base, changes=[(w, copy.deepcopy(c)) for w, c in changes])
        except ConfigError as error:
            raise ConfigError(f"variant `{variant}`: {error}") from error

    def _check(self) -> None:
        for name in self.variants:
            if not _FOLDER_NAME.fullmatch(name):
                raise ConfigError(
                    f"{self.path}: a variant's name becomes a folder's, so it must be letters, "
                    f"digits, `.`, `_` and `-`, at most 64, but one is {name!r}."
                )
        if self.reference not in self.variants:
            raise ConfigError(
                f"{self.path}: `reference` must be a variant, but is {self.reference!r}."
                f"{_nearest(self.reference, self.variants)}"
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"{self.path}: `seeds` must differ, but are {list(self.seeds)}.")
        for where, changes in (("set", self._shared), *self._changes.items()):
            if taken := [key for key, _ in flatten(changes) if key in _OURS]:
                raise ConfigError(
                    f"{self.path}: {', '.join(taken)} in `{where}` is the sweep's to set: give "
                    "`seeds` and `dir`."
                )
        seen: dict[str, str] = {}
        for name in self.variants:
            values = as_values(self.config(name, self.seeds[0]))
            twin = seen.setdefault(json.dumps({**values, "run": None}, sort_keys=True), name)
            if twin != name:
                raise ConfigError(
                    f"{self.path}: the variants `{twin}` and `{name}` resolve to the same settings."
                    " Take one away, or look for the key that should differ."
                )


def nested(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Sections in sections, for keys that may be written with dots."""
    values: dict[str, Any] = {}
    for key, value in flatten(changes):
        *sections, last = key.split(".")
        node = values
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise ConfigError(f"`{key}`: {section} is given as a value, too.")
        node[last] = value
    return values


def _read(path: Path) -> _QuestionFile:
    if not path.is_file():
        near = [str(other) for other in path.parent.glob("*.yaml")]
        raise ConfigError(f"there is no question {path}.{_nearest(str(path), near)}")
    content = parse_yaml(path.read_text(encoding="utf-8", errors="replace"), str(path))
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold `key: value` lines, but holds {content!r}.")
    try:
        return _QuestionFile.model_validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        raise ConfigError(
            " Also: ".join(_describe(problem, path) for problem in error.errors())
        ) from error


def _describe(problem: Any, path: Path) -> str:
    *sections, last = (str(part) for part in problem["loc"])
    key = ".".join((*sections, last))
    if problem["type"] == "extra_forbidden":
        known = list((ProbeOptions if sections else _QuestionFile).model_fields)
        hint = _nearest(last, known) or f" Known here: {', '.join(known)}."
        return f"unknown key `{key}` in {path}.{hint}"
    if problem["type"] == "missing":
        return f"`{key}` is missing in {path}."
    return f"`{key}` in {path}: {problem['msg']}, but is {problem['input']!r}."


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" Did you mean `{near[0]}`?" if near else ""
