"""Errors that are addressed to the user, each with its documented exit status."""

from pathlib import Path


class ConfigError(Exception):
    """A setting that cannot work: unknown key, wrong type, impossible geometry, missing path."""

    exit_status = 2


class NumericsError(Exception):
    """Training stopped being finite, or collapsed."""

    exit_status = 4


class DivergedError(NumericsError):
    """Too many gradients were not finite: the run may go back to before the first of them.

    :param first: the update of the first of them.
    """

    def __init__(self, message: str, *, first: int) -> None:
        super().__init__(message)
        self.first = first


class CollapseError(NumericsError):
    """Representations lost their spread.

    :param checkpoint: the last healthy one, where there is one.
    """

    def __init__(self, message: str, *, checkpoint: Path | None) -> None:
        super().__init__(message)
        self.checkpoint = checkpoint


class CheckpointError(Exception):
    """No valid checkpoint where there should be one."""

    exit_status = 5


class PreemptedError(Exception):
    """The run was asked to stop; a checkpoint was published where there was something to save."""

    exit_status = 75


class LostRankError(Exception):
    """Another rank died, stopped or failed.

    :param rank: which.
    """

    exit_status = 76

    def __init__(self, message: str, *, rank: int) -> None:
        super().__init__(message)
        self.rank = rank


class StorageError(Exception):
    """A disk is full or fails; what was published before is whole."""

    exit_status = 77
