"""From YAML files and command-line words to a checked :class:`Config`, with errors for people.

    file -> its base, and that one's base … -> overrides -> the typed tree

Values are YAML as YAML 1.2 reads numbers: ``lr=3e-4`` is a number here, though not to PyYAML.
"""

import difflib
import json
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Union, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, create_model

from etude.pretrain.config import Config, KnownTargetConfig, ObjectiveConfig
from etude.pretrain.errors import ConfigError
from etude.pretrain.targets import FURTHER


class _Loader(yaml.SafeLoader):
    """YAML without surprises: no dates, no yes/no booleans, ``3e-4`` a number, no key twice."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):  # `{{name}}` is a mapping as a key
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} cannot be a key", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} occurs twice", key_node.start_mark
                )
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        return int(str(self.construct_scalar(node)).replace("_", ""))  # "010" is ten, not eight


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
for _tag, _pattern, _first in (
    ("bool", r"true|false|True|False", [*"tfTF"]),
    ("null", r"~|null|", [*"~n", ""]),  # "": an empty value is null
    ("int", r"[-+]?[0-9][0-9_]*", [*"-+0123456789"]),
    ("float", r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", [*"-+.0123456789"]),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first
    )


def load_config(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    changes: Sequence[tuple[str, Mapping[str, Any]]] = (),
) -> Config:
    """Reads and checks a run's configuration.

    :param overrides: words like ``optim.lr=3e-4``; they win over all else.
    :param changes: sections laid over the file's in turn, as those of a file are over its base's,
        each after the name of where it stands, for messages.
    :raises ConfigError: in words for the user.
    """
    values, origins = _read(path, ())
    for where, content in changes:
        _merge(values, content)
        origins.update({key: where for key, _ in flatten(content)})
    for word in overrides:
        _override(values, origins, word)
    return _validate(values, origins, path)


def as_values(config: BaseModel) -> dict[str, Any]:
    """The tree as plain values, for YAML and for comparing."""
    values: dict[str, Any] = json.loads(config.model_dump_json())
    return values


def dump_yaml(config: BaseModel) -> str:
    """The resolved configuration as YAML that :func:`load_config` reads."""
    return yaml.safe_dump(as_values(config), sort_keys=False)


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves as (``key.path``, value)."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def parse_yaml(text: str, where: str) -> Any:
    """Parses YAML text safely.

    :raises ConfigError: naming ``where`` and the line.
    """
    try:
        content = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
        json.dumps(content, default=str, skipkeys=True)  # not for ever: an alias may hold itself
    except RecursionError as error:
        raise ConfigError(f"{where} is nested too deeply.") from error
    # Of `!!float x`, `!!bool x` and `!!timestamp x` PyYAML tells in its own ways.
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{where} is not valid YAML: {error}") from error
    return content


def _read(path: Path, parents: tuple[Path, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    if path.resolve() in parents:
        raise ConfigError(f"{path} is its own base: " + " -> ".join(map(str, parents)))
    if not path.is_file():
        near = difflib.get_close_matches(
            path.name, [other.name for other in path.parent.glob("*.yaml")], n=1
        )
        hint = f" Did you mean {path.parent / near[0]}?" if near else ""
        raise ConfigError(f"there is no configuration file {path}.{hint}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text in UTF-8: {error}.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error
    content = parse_yaml(text, str(path))
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold `key: value` lines, but holds {content!r}.")
    base = content.pop("base", None)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if base is not None:
        values, origins = _read(path.parent / str(base), (*parents, path.resolve()))
    _merge(values, content)
    origins.update({key: str(path) for key, _ in flatten(content)})
    return values, origins


def _merge(values: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(values.get(key), dict):
            old = values[key]
            # Another kind of target shares no keys with the one it replaces.
            if "kind" in value and value["kind"] != old.get("kind"):
                values[key] = dict(value)
            else:
                _merge(old, value)
        else:
            _set(values, key, value)


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    if value is None and isinstance(values.get(key), dict):
        del values[key]  # `cqt: null` takes a target away
    else:
        values[key] = value


def _override(values: dict[str, Any], origins: dict[str, str], word: str) -> None:
    key, equals, text = word.partition("=")
    if not equals or not key:
        raise ConfigError(f"`{word}` is no override: write key.path=value, such as optim.lr=3e-4.")
    change: Any = parse_yaml(text, f"the value of `{word}`")
    parts = key.split(".")
    node = values
    for part in parts[:-1]:
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            raise ConfigError(f"`{word}`: {part} is a value, not a section.")
        node = child
    _set(node, parts[-1], change)
    origins[key] = f"`{word}`"


def _validate(values: dict[str, Any], origins: dict[str, str], path: Path) -> Config:
    form = config_form(_further_kinds(values))
    # JSON mode: strict about types, yet a list is a tuple and a string is a path.
    try:
        text = json.dumps(values)
    except TypeError as error:
        raise ConfigError(f"{path} holds a value of no plain type: {error}") from error
    try:
        return form.model_validate_json(text)
    except ValidationError as error:
        values = json.loads(text)  # as pydantic saw it: every key a string
        problems = [_describe(problem, values, origins, path, form) for problem in error.errors()]
        raise ConfigError(" Also: ".join(problems)) from error


@cache
def config_form(kinds: frozenset[str]) -> type[Config]:
    """:class:`Config`, with the settings of further targets, whose files it imports."""
    if not kinds:
        return Config
    modules = [import_module(f"etude.pretrain.targets.{kind}") for kind in sorted(kinds)]
    target: Any = Annotated[
        Union[(KnownTargetConfig, *(module.Settings for module in modules))],  # noqa: UP007
        Field(discriminator="kind"),
    ]
    targets: Any = Annotated[dict[str, target], Field(min_length=1)]
    objective = create_model("ObjectiveConfig", __base__=ObjectiveConfig, targets=(targets, ...))
    return create_model("Config", __base__=Config, objective=(objective, ...))


def _further_kinds(values: Mapping[str, Any]) -> frozenset[str]:
    """Those that the values name, as far as they have any form at all."""
    node: Any = values
    for key in ("objective", "targets"):
        node = node.get(key) if isinstance(node, Mapping) else None
    targets = node.values() if isinstance(node, Mapping) else ()
    named = (target.get("kind") for target in targets if isinstance(target, Mapping))
    return frozenset(kind for kind in named if isinstance(kind, str) and kind in FURTHER)


def _describe(
    problem: Any,
    values: dict[str, Any],
    origins: Mapping[str, str],
    path: Path,
    form: type[Config],
) -> str:
    parts = _user_path(problem, values)
    key = ".".join(parts)
    where = _origin(key, origins) or str(path)
    if problem["type"] == "extra_forbidden":
        inside = [origin for other, origin in origins.items() if other.startswith(f"{key}.")]
        where = inside[0] if inside else where
        known = _known_keys([str(part) for part in problem["loc"]], form)
        near = difflib.get_close_matches(parts[-1], known, n=1, cutoff=0.5)
        hint = f"Did you mean `{near[0]}`?" if near else f"Known here: {', '.join(known)}."
        return f"unknown key `{key}` in {where}. {hint}"
    if problem["type"] in ("missing", "union_tag_not_found") and isinstance(problem["input"], dict):
        return f"`{key}` is missing in {path}: give it there or as {key}=VALUE."
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "union_tag_invalid":
        message += f", nor any of {', '.join(map(repr, FURTHER))}"
    given = "" if isinstance(problem["input"], dict) else f", but is {problem['input']!r}"
    place = f"`{key}` in {where}: " if key else f"{path}: "
    return f"{place}{message}{given}."


def _user_path(problem: Any, values: Any) -> list[str]:
    """The problem's place as a path of the user's keys: pydantic adds the branches of unions."""
    parts = []
    for index, part in enumerate(problem["loc"], start=1):
        keys = range(len(values)) if isinstance(values, list) else values
        absent = problem["type"] == "missing" and index == len(problem["loc"])
        if isinstance(keys, dict | range) and part in keys:
            values = values[part]
        elif not (absent and isinstance(keys, dict)):
            continue
        parts.append(str(part))
    if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        parts.append("kind")
    return parts


def _origin(key: str, origins: Mapping[str, str]) -> str | None:
    """Where ``key`` was given, by its own name or with a whole section."""
    sections = [key.rsplit(".", dropped)[0] for dropped in range(key.count(".") + 1)]
    return next((origins[name] for name in sections if name in origins), None)


def _known_keys(location: Sequence[str], form: type[Config]) -> list[str]:
    model: type[BaseModel] = form
    for part in location[:-1]:
        field = model.model_fields.get(part)
        candidates = [] if field is None else [field.annotation, *_nested(field.annotation)]
        found = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        found = [c for c in found_targets(form) if _kind(c) == part] or found
        if found:
            model = found[0]
    return list(model.model_fields)


def _kind(target: type[BaseModel]) -> str:
    kind: str = get_args(target.model_fields["kind"].annotation)[0]
    return kind


def found_targets(form: type[Config] = Config) -> list[type[BaseModel]]:
    """The target sections, by kind."""
    annotation = form.model_fields["objective"].annotation
    assert isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return [
        candidate
        for candidate in _nested(annotation.model_fields["targets"].annotation)
        if isinstance(candidate, type) and issubclass(candidate, BaseModel)
    ]


def _nested(annotation: Any) -> Iterator[Any]:
    for argument in get_args(annotation):
        yield argument
        yield from _nested(argument)
