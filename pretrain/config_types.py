"""What the sections of a run's settings are made of."""

from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

from etude.models.config import EncoderConfig

if TYPE_CHECKING:
    from etude.pretrain.targets.base import Target

Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """Base of every section: frozen, strict, no unknown keys; docstrings are the documentation."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class FurtherTargetConfig(Section):
    """Settings of a target that is at home in ``pretrain/targets/``; it adds its ``kind``."""

    weight: Positive = 1.0
    """Factor of the target's loss."""

    def check(self, model: EncoderConfig) -> None:  # noqa: B027 - most read no file
        """Looks at the files that it names, before any model is built.

        :raises ConfigError: where one is missing or does not fit the model.
        """

    def build(self, model: EncoderConfig, *, seed: int) -> "Target":
        """The target for an encoder of this geometry; what is random follows from ``seed``."""
        raise NotImplementedError

    def head_outputs(self, dim: int) -> int:
        """Numbers that its head makes of each row; it is planned for as one linear layer."""
        raise NotImplementedError

    def head_parameters(self, dim: int) -> int:
        """Numbers that its head learns: those of one linear layer, if nothing else is said."""
        return (dim + 1) * self.head_outputs(dim)
