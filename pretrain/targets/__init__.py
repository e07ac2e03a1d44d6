"""Targets: what masked frames are compared with.

Four have their settings in ``pretrain/config.py``. Any other is a file here and its name below:

    NAME.py          class Settings(FurtherTargetConfig): kind: Literal["NAME"], its keys, ``build``

It imports no torch before ``build``: a mistake in a setting is told before anything heavy is
imported. A target that is made of parts that are there (``mel_rvq.py``) needs no more; one with a
computation, head or loss of its own has them in a second file, which ``build`` imports:

    NAME_target.py   class …Target(Target): what it computes, its head and its loss
"""

FURTHER: tuple[str, ...] = ("random_projection", "mel_rvq")
"""Kinds of target that are at home in this package."""
