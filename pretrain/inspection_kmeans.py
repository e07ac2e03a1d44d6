"""K-means labels of the clips that ``launch/inspect.py`` looks at, computed as training would.

Spectra alone: hidden states of an encoder would cost a forward pass for every clip.
"""

from typing import TYPE_CHECKING, final

import numpy as np

from etude.data.audio import Samples
from etude.data.inspection.labels import LabelUsage
from etude.data.shards import Corpus, Split
from etude.pretrain.errors import ConfigError

if TYPE_CHECKING:
    from etude.pretrain.quantizer import FeatureQuantizer

CLIPS = 64
"""Of each split, at most: labels cost more than all other measures of a clip together."""

_PREFIX, _SUFFIX, _PART = "kmeans-", ".safetensors", ".part.safetensors"


@final
class KmeansCounter:
    """Counts the labels of one quantiser; a listener of ``inspect_corpus``."""

    def __init__(self, name: str, quantizer: "FeatureQuantizer") -> None:
        self._name = name
        self._quantizer = quantizer
        self._counts = np.zeros(quantizer.num_classes, dtype=np.int64)
        self._clips: dict[str, int] = {}

    def hear(self, split: Split, clip: int, samples: Samples) -> None:
        """Labels the clip, if it is one of the first and holds a frame."""
        heard = self._clips.get(split.name, 0)
        if heard >= CLIPS or len(samples) < self._quantizer.settings.grid.receptive_samples:
            return
        import torch

        labels = self._quantizer(torch.from_numpy(samples)[None])[0].numpy()
        self._counts += np.bincount(labels, minlength=len(self._counts))
        self._clips[split.name] = heard + 1

    def usage(self) -> list[LabelUsage]:
        """One codebook."""
        clips = sum(self._clips.values())
        return [LabelUsage(self._name, len(self._counts), clips, self._counts)]


def kmeans_counters(corpus: Corpus) -> tuple[list[KmeansCounter], list[str]]:
    """A counter for each k-means file of a corpus, and why others are not counted."""
    paths = sorted(corpus.root.glob(f"{_PREFIX}*{_SUFFIX}"))
    paths = [path for path in paths if not path.name.endswith(_PART)]
    if not paths:
        return [], []
    # Imported late: a corpus without such files should not wait for torch.
    from etude.pretrain.quantizer import load_quantizer, read_settings

    counters, problems = [], []
    for path in paths:
        name = path.name.removesuffix(_SUFFIX)
        try:
            settings = read_settings(path)
            if settings.encoder is not None:
                problems.append(f"{name}: not counted, for it takes an encoder's forward pass")
            elif settings.sample_rate != corpus.sample_rate:
                problems.append(
                    f"{name}: not counted, for it is for {settings.sample_rate} Hz and the corpus "
                    f"has {corpus.sample_rate} Hz. Fit it anew with launch/cluster.py"
                )
            else:
                quantizer = load_quantizer(path)
                if quantizer.corpus not in (None, corpus.fingerprint):
                    problems.append(f"{name}: was fitted to another corpus than this is now")
                counters.append(KmeansCounter(name, quantizer))
        except ConfigError as error:
            problems.append(str(error))
    return counters, problems
