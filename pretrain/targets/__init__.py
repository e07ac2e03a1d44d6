"""Targets: what masked frames are compared with, one file each.

Four are at home in ``pretrain/config.py``. Any other is one file here, with its settings in it:

    class Settings(FurtherTargetConfig)   kind: Literal["NAME"], its keys, and ``build``
    class …Target(Target)                 what it computes, its head and its loss

and its name below, which is the file's and its ``kind`` in a YAML file. Nothing here imports torch:
settings are read before anything heavy is.
"""

FURTHER: tuple[str, ...] = ("random_projection",)
"""Kinds of target that are one file of this package each."""
