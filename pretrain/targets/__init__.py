"""Targets: what masked frames are compared with.

Four have their settings in ``pretrain/config.py``. Any other is two files here:

    NAME.py          class Settings(FurtherTargetConfig): kind: Literal["NAME"], its keys, ``build``
    NAME_target.py   class …Target(Target): what it computes, its head and its loss

and its name below. The first imports no torch before ``build``: a mistake in a setting is told
before anything heavy is imported.
"""

FURTHER: tuple[str, ...] = ("random_projection",)
"""Kinds of target that are at home in this package."""
