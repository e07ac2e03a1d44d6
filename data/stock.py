"""webdataset's own reader over our shards: what most people would use, to compare with.

Shards are dealt to ranks and workers and read from beginning to end; clips are shuffled in a buffer
as bytes and decoded late. There is no position to resume from, the order depends on the number of
ranks and workers, and what is lost of a damaged shard is not counted.
"""

import io
import json
import logging
import random
from collections.abc import Iterable, Iterator
from typing import Any, final

import numpy as np
import webdataset
from torch.utils.data import get_worker_info

from etude.data.audio import decode_pcm16
from etude.data.batch import Crop
from etude.data.crop import crop_start
from etude.data.errors import DataError
from etude.data.plan import BatchShare, Plan

_log = logging.getLogger(__name__)

_BUFFER = 1000  # clips: webdataset's own default


@final
class StockRead:
    """Stage: positions become crops, but which crops is webdataset's affair.

    :param plan: of one corpus in a folder; its order is not used.
    """

    def __init__(self, plan: Plan, share: BatchShare, first_update: int) -> None:
        (self._plan,) = plan.parts
        self._share = share
        self._first_update = first_update

    def __call__(self, positions: Iterable[int]) -> Iterator[Crop]:
        """A crop for every position: the next clip that is read."""
        samples = self._samples()
        for position in positions:
            yield self._crop(position, samples)

    def _crop(self, position: int, samples: Iterator[dict[str, Any]]) -> Crop:
        plan, skipped = self._plan, 0
        for sample in samples:
            try:
                length = int(json.loads(sample["json"])["num_samples"])
                if length < plan.crop_samples:
                    continue
                start = crop_start(
                    length,
                    plan.crop_samples,
                    hop_samples=plan.hop_samples,
                    seed=plan.seed,
                    position=position,
                )
                waveform, _ = decode_pcm16(
                    io.BytesIO(sample[plan.split.corpus.extension]),
                    start=start,
                    frames=plan.crop_samples,
                )
            except (DataError, ValueError, KeyError, TypeError) as error:
                _log.warning("skipped a damaged clip (%s): %s", sample.get("__key__"), error)
                skipped += 1
                continue
            return Crop(position, waveform, {}, skipped)
        raise AssertionError("the stream of samples does not end")

    def _samples(self) -> Iterator[dict[str, Any]]:
        return iter(
            webdataset.DataPipeline(
                self._urls,
                webdataset.tarfile_to_samples(handler=webdataset.warn_and_continue),
                webdataset.shuffle(_BUFFER, rng=random.Random(self._plan.seed)),
            )
        )

    def _urls(self) -> Iterator[dict[str, str]]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        corpus = self._plan.split.corpus
        paths = [corpus.root / s.file for s in corpus.shards if s.split == self._plan.split.name]
        readers = workers * self._share.ranks
        if len(paths) < readers:
            raise DataError(
                "data.reader: webdataset gives every worker of every rank shards of its own, but "
                f"{corpus.root} has {len(paths)} shards for {readers} workers. Lower data.workers, "
                "or prepare the corpus with a smaller --shard-mb."
            )
        mine = self._share.rank * workers + worker
        # A run that continues begins an order of its own: where the old one was is not known.
        generator = np.random.default_rng([self._plan.seed, self._first_update])
        while True:
            for number in generator.permutation(len(paths)).tolist()[mine::readers]:
                yield {"url": str(paths[number].resolve())}
