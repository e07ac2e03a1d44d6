"""A probe of models on local copies of data sets.

line up models -> read the data sets -> per model: features -> heads -> metrics, intervals
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from etude.data.errors import InputError
from etude.probes.datasets.opening import OpenDataset, open_dataset
from etude.probes.datasets.request import by_dataset
from etude.probes.heads import HeadOptions
from etude.probes.lineup import REFERENCES, ReferenceName, line_up
from etude.probes.results import ProbeResults
from etude.probes.run import make_folders, probe_tasks


def probe_datasets(
    models: Sequence[Path],
    *,
    folders: Mapping[str, Path],
    tasks: Sequence[str],
    out: Path,
    seed: int = 0,
    cache: Path | None = None,
    device: torch.device | None = None,
    heads: HeadOptions | None = None,
    references: Sequence[ReferenceName] = REFERENCES,
) -> ProbeResults:
    """Probes models beside references; writes ``out`` and returns it all.

    :param models: checkpoints, run folders or Hugging Face folders.
    :param folders: local copies, by name of the data set.
    :param tasks: names in ``catalogue.DATASET_TASKS``.
    :param out: folder for ``results.json`` and ``layers.png``.
    :param seed: decides fresh weights, heads' starts and bootstrap draws.
    :param cache: folder of features and of what became of each file, to be shared among runs;
        ``None``: ``out/corpus``.
    :param device: where models run; ``None``: a GPU where there is one.
    :param heads: which heads are fitted, and how; ``None``: linear.
    :param references: what models are compared with.
    :raises InputError: for a missing model or folder, or an impossible option.
    :raises DataError: for a folder that is not the data set.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if seed < 0:
        raise InputError(f"seed must be >= 0, but is {seed}.")
    asked = by_dataset(tasks, folders)
    # Models first: a wrong path should not cost the minutes in which files are decoded.
    rows = line_up(models, references=references, seed=seed, device=device)
    cache = make_folders(out, cache)
    opened = []
    for dataset, names in asked.items():
        memory = cache / f"decoded-{dataset}.json"
        opened.append(open_dataset(folders[dataset], names, memory=memory))
        print(opened[-1].report(), flush=True)
    return probe_tasks(
        rows,
        [task for each in opened for task in each.tasks],
        {each.source.name: each.source for each in opened},
        out=out,
        cache=cache,
        seed=seed,
        device=device,
        heads=heads or HeadOptions(),
        settings={
            "seed": seed,
            "data": {each.source.name: _told(each, folders) for each in opened},
        },
    )


def _told(opened: OpenDataset, folders: Mapping[str, Path]) -> dict[str, object]:
    return {
        "folder": str(folders[opened.source.name]),
        "files": len(opened.source.paths),
        "unusable": dict(opened.unusable),
        "left_out": list(opened.left_out),
        "remarks": list(opened.remarks),
    }
