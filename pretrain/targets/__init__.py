"""Targets: what masked frames are compared with.

Four have their settings in ``pretrain/config.py``. Any other is a file here and its name below:

    NAME.py          class Settings(FurtherTargetConfig): kind: Literal["NAME"], its keys, ``build``

One with a computation, head or loss of its own (``random_projection.py``) has its ``Target`` there
too. The file is imported where a run names its kind, when its settings are read: one that can do
without torch before ``build`` (``mel_rvq.py``) tells a mistake seconds earlier.
"""

FURTHER: tuple[str, ...] = ("random_projection", "mel_rvq")
"""Kinds of target that are at home in this package."""
