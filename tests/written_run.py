"""The folder of a run as the trainer leaves it, written in an instant."""

import json
import math
from pathlib import Path


def make_run(
    folder: Path, *, lr: float = 3e-4, torn: bool = True, seed: int = 1, more: float = 0.0
) -> Path:
    """A run of 40 updates in the words of the trainer.

    :param torn: killed while it wrote the last line.
    :param more: added to its loss.
    """
    folder.mkdir(parents=True)
    lines: list[dict[str, float]] = []
    for step in range(2, 42, 2):
        fall = math.exp(-step / 20)
        record = {
            "step": step,
            "loss": 6 + fall + more,
            "optim/lr": lr * min(1, step / 10),
            "optim/grad_norm": 2 + math.sin(step),
            "audio_hours": step / 50,
            "perf/crops_per_second": 12.5,
            "perf/audio_hours_per_day": 864.0,
            "perf/data_wait": 0.01,
            "feature_penalty": 0.3 + fall,
            "logmel/loss": 4 + fall,
            "logmel/accuracy": 0.1 - 0.05 * fall,
            "logmel/copy_accuracy": 0.4,
            "logmel/majority_rate": 0.08,
            "logmel/unigram_entropy": 4.2,
            "cqt/loss": 100 * fall,
            "cqt/copy_loss": 40.0,
            "cqt/variance": 60.0,
            "data/skipped": 0,
        }
        lines.append(record)
        if step % 20 == 0:
            valid = {f"valid/{name}": value for name, value in record.items() if name[0] in "lc"}
            lines.append({"step": step, **valid})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + ('{"step": 42, "lo' if torn else ""))
    (folder / "config.yaml").write_text(
        f"config:\n  run: {{dir: {folder}}}\n  seed: {seed}\n  optim: {{lr: {lr}}}\n"
        "  objective: {targets: {logmel: {kind: kmeans}, cqt: {kind: cqt}}}\n"
        "versions: {torch: 2.9.1}\n"
    )
    if not torn:
        exit = {"code": 0, "reason": "done", "step": 40, "rank": 0, "last_good_checkpoint": None}
        (folder / "EXIT.json").write_text(json.dumps(exit))
    return folder
