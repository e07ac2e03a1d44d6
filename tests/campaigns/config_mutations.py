"""Shipped configurations, each key misspelt, retyped or out of range: all must be refused.

    python tests/campaigns/config_mutations.py [--count 300] [--seed S] [--command]

Every mutation is an override of one key. It must end in a ConfigError that names the key. With
`--command` each goes through `python launch/train.py CONFIG KEY=VALUE --print-config`, which must
end with status 2, one line on stderr and no sign of torch; where the settings of a target stand in
one file with what it computes, of no part of a model.
"""

import argparse
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etude.pretrain.config_file import as_values, flatten, load_config
from etude.pretrain.errors import ConfigError

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(
    path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "questions"
)
WITH_TORCH = ("quickstart_random_projection",)
"""Configurations that name such a target."""


@dataclass(frozen=True)
class Mutation:
    """One override that no configuration may survive."""

    config: Path
    kind: str
    key: str
    """What the message must name."""
    word: str


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--command", action="store_true", help="through the command, a second each")
    options = parser.parse_args()
    for config in CONFIGS:
        load_config(config)  # none of the shipped ones is refused
    chosen = draw(options.count, options.seed)
    check = through_command if options.command else in_process
    wrong = [(mutation, problem) for mutation in chosen if (problem := check(mutation))]
    for mutation, problem in wrong:
        print(f"{mutation.config.relative_to(ROOT)} {mutation.word}: {problem}")
    kinds = {kind: sum(m.kind == kind for m in chosen) for kind in sorted({m.kind for m in chosen})}
    print(f"{len(CONFIGS)} configurations, {len(chosen)} mutations {kinds}, {len(wrong)} survived")
    return 1 if wrong else 0


def draw(count: int, seed: int) -> list[Mutation]:
    """``count`` different mutations, spread over all configurations."""
    everything = [mutation for config in CONFIGS for mutation in mutations(config)]
    return random.Random(seed).sample(everything, min(count, len(everything)))


def mutations(config: Path) -> Iterator[Mutation]:
    """All mutations of a configuration, its defaults included."""
    generator = random.Random(str(config))
    for key, value in flatten(as_values(load_config(config))):
        section, _, name = key.rpartition(".")
        spelt = misspelt(name, generator)
        dot = "." if section else ""
        # In `objective.targets` any name is one; `deepspeed` is checked by other rules.
        if section != "objective.targets" and not key.startswith("deepspeed"):
            wrong = f"{section}{dot}{spelt}"
            yield Mutation(config, "misspelt", wrong, f"{wrong}={plain(value)}")
        if (retyped := of_another_type(key, value)) is not None:
            yield Mutation(config, "retyped", key, f"{key}={retyped}")
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield Mutation(config, "out of range", key, f"{key}=-1")
            yield Mutation(config, "out of range", key, f"{key}=.inf")


def misspelt(name: str, generator: random.Random) -> str:
    """The name with a letter lost, doubled or two exchanged."""
    at = generator.randrange(len(name) - 1)
    ways = [
        name[:at] + name[at + 1 :],
        name[:at] + name[at] + name[at:],
        name[:at] + name[at + 1] + name[at] + name[at + 2 :],
    ]
    return next(way for way in generator.sample(ways, 3) if way != name)


def of_another_type(key: str, value: Any) -> str | None:
    """A value that the key cannot have, or ``None`` if any could be meant."""
    if value is None or key.startswith("deepspeed"):
        return None
    if isinstance(value, bool):
        return "perhaps"
    if isinstance(value, int | float):
        return "[a, b]"
    if isinstance(value, list):
        return "all"
    return "{a: 1}" if isinstance(value, dict) else "[1, 2]"


def plain(value: Any) -> str:
    return "null" if value is None else str(value)


def in_process(mutation: Mutation) -> str | None:
    """What is wrong with how it was refused."""
    try:
        load_config(mutation.config, [mutation.word])
    except ConfigError as error:
        return None if mutation.key in str(error) else f"does not name {mutation.key}: {error}"
    return "was accepted"


def through_command(mutation: Mutation) -> str | None:
    """The same through the command that users run."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", ROOT / "launch" / "train.py"]
        + [mutation.config, mutation.word, "--print-config"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    imports = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    if done.returncode != 2 or len(said) != 1 or not said[0].startswith("error: "):
        return f"status {done.returncode}: {said}"
    heavy = "etude.models.encoder" if mutation.config.stem in WITH_TORCH else "torch"
    if any(line.rpartition("|")[2].strip() == heavy for line in imports):
        return f"{heavy} was imported"
    return None if mutation.key in said[0] else f"does not name {mutation.key}: {said[0]}"


if __name__ == "__main__":
    sys.exit(main())
