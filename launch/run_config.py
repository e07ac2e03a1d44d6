"""A run's config as commands read it: with what the settings themselves cannot check."""

from collections.abc import Sequence
from pathlib import Path

from etude.pretrain.config import Config
from etude.pretrain.config_file import load_config
from etude.pretrain.errors import ConfigError


def load_run_config(path: Path, overrides: Sequence[str]) -> Config:
    """Reads and checks it.

    :raises ConfigError: in words for the user.
    """
    config = load_config(path, overrides)
    check_probe(config)
    return config


def check_probe(config: Config) -> None:
    """Holds ``probe.tasks`` against what can be probed, which training does not know.

    :raises ConfigError: if it asks for something else.
    """
    if config.probe.tasks is None:
        return
    from etude.probes.tasks import TASK_NAMES

    unknown = [name for name in config.probe.tasks if name not in TASK_NAMES]
    if unknown:
        raise ConfigError(
            f"`probe.tasks` must be among {', '.join(TASK_NAMES)}, but names {', '.join(unknown)}."
        )
