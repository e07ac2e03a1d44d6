"""What a run knows of itself beside weights and optimizer: every checkpoint holds it, as JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass
class RunState:
    """Counts and windows that a run which continues must have as if it had never stopped."""

    step: int = 0
    """Updates that are done."""

    passed_over: int = 0
    """Updates' worth of data that was passed over: update N hears what N + this one would have."""

    rollbacks: int = 0
    """How often the run has gone back to an earlier checkpoint."""

    skipped_updates: int = 0
    """Updates that were thrown away because the gradient was not finite."""

    recent_skips: list[int] = field(default_factory=list)
    """The newest of them, by their number."""

    crops: int = 0
    """Crops that were judged for damage."""

    skipped_crops: int = 0
    """Those of them whose clip was damaged; others were heard in their place."""

    losses: list[float] = field(default_factory=list)
    """Of the last updates: what the next ones are compared with."""

    grad_norms: list[float] = field(default_factory=list)
    """The same of the gradient's norm."""

    loss_spikes: int = 0
    grad_norm_spikes: int = 0

    @staticmethod
    def of(values: Mapping[str, Any]) -> "RunState":
        """The state in a checkpoint's ``trainer.json``, which holds other things too."""
        known = {one.name for one in fields(RunState)}
        return RunState(**{key: value for key, value in values.items() if key in known})

    def values(self) -> dict[str, Any]:
        """What :meth:`of` reads."""
        return asdict(self)

    def went_back(self, old: "RunState") -> "RunState":
        """``old`` as the state that a run goes back to, passing over the data up to here."""
        heard = self.step + self.passed_over + 1  # the update that failed is not counted yet
        return RunState(
            **{
                **old.values(),
                "passed_over": heard - old.step,
                "rollbacks": self.rollbacks + 1,
                "skipped_updates": self.skipped_updates,
                "recent_skips": [],
            }
        )
