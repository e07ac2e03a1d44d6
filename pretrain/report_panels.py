"""Which curves go together, and what each of them says to someone who sees it for the first time.

Panels are found from the names in ``metrics.jsonl``, not from the configuration: a target that
logs ``NAME/accuracy`` is a classification, one with only ``NAME/loss`` a regression, and whatever
is not recognised gets a panel of its own rather than being left out.
"""

import re
from collections.abc import Sequence

from etude.pretrain.report_figures import Curve, Panel, Style
from etude.pretrain.report_run import ReportRun, Series

VALID = "valid/"

_TRAIN, _HELD_OUT = "train", "held out"

_CROSS_ENTROPY = (
    "How surprised the model is by the right label of a frame it cannot see, in nats; lower is "
    "better. The dashed line is the unigram entropy of the labels: the best that is possible "
    "without listening, by always predicting how often each label occurs. Learning starts where "
    "the curve falls below it. Thin: training, with masks and dropout; dots: held-out tracks."
)
_ACCURACY = (
    "Share of hidden frames whose label is guessed right; higher is better. Dashed: always "
    "answering the most frequent label. Dotted: copying the label of the nearest visible frame, "
    "which is strong because music changes slowly. A model that stays below the dotted line has "
    "not learnt more than that sounds last."
)
_REGRESSION = (
    "Mean squared error of the predicted values on hidden frames; lower is better. Dashed: the "
    "error of always predicting the mean (the variance of the target), which needs no listening. "
    "Dotted: the error of copying the nearest visible frame."
)
_TOTAL = (
    "What training minimises: the losses of all targets, each times its weight, plus the penalty "
    "on features. Its height means little, and runs with other targets or weights cannot be "
    "compared by it; it should fall, and without jumps."
)
_PENALTY = (
    "Mean square of what the convolutions give before any normalisation. Its penalty keeps the "
    "front end from growing without bound. It should settle; steady growth warns of instability."
)
_GRAD_NORM = (
    "Length of the gradient over all parameters before it is clipped. Single spikes are usual and "
    "are what clipping is for; a rise that lasts warns. That it is low says nothing: it is low "
    "where nothing is learnt, too."
)
_LR = (
    "The size of the optimizer's step: it rises during warm-up, then decays. Compare it with the "
    "gradient norm and the loss when something jumps."
)
_THROUGHPUT = (
    "Crops of audio trained on per second, over all ranks; higher is cheaper. Drops usually mean "
    "that data or another process held it up."
)
_MFU = (
    "FLOP/s of the model over those of a matrix product on the same device: how much of what was "
    "paid for does the work."
)
_DATA_WAIT = (
    "Share of the time in which training waited for data. It should be close to nothing; where it "
    "is not, more data.workers or a faster disk will help more than a faster GPU."
)
_HEALTH = {
    "std": "Standard deviation of a dimension over frames, averaged over dimensions; near 0 all "
    "frames look alike.",
    "rank": "Effective rank: in how many directions features spread; 1 is a collapse.",
    "frame_cosine": "Mean cosine of two frames of a clip; 1 where all are alike.",
    "clip_cosine": "Mean cosine of the mean frames of two clips; 1 where all are alike.",
    "target_std": "Spread of what the teacher wants predicted, over frames. Dashed: the limit "
    "below which the run stops. A loss that falls while this falls is a collapse.",
    "prediction_std": "Spread of what the student predicts, over frames. Dashed: the limit below "
    "which the run stops. It is flat at first, when nothing is learnt yet.",
}
_PROBE = (
    "Score of a head on frozen features, on rendered tracks that nobody trained on, of the layer "
    "that validation chose; thin: the ends of its 95 % interval over tracks. Dashed: the same "
    "encoder untrained. Dotted: log-mel bands. A probe of few tracks jumps from layer to layer."
)
_OTHER = "Logged by the run under this name."

# Name, title, unit, note; drawn below the targets, in this order.
_RUN_PANELS = (
    ("feature_penalty", "Feature penalty", "mean square", _PENALTY),
    ("optim/grad_norm", "Gradient norm", "norm", _GRAD_NORM),
    ("optim/lr", "Learning rate", "", _LR),
    ("perf/crops_per_second", "Throughput", "crops / s", _THROUGHPUT),
    ("perf/mfu", "Model FLOPs utilisation", "share of the peak", _MFU),
    ("perf/data_wait", "Waiting for data", "share of time", _DATA_WAIT),
)

# Quantities of a target that its panels use up.
_USED = (
    "loss",
    "accuracy",
    "copy_accuracy",
    "copy_loss",
    "variance",
    "constant_loss",
    "majority_rate",
    "unigram_entropy",
)
_SPREADS = ("target_std", "prediction_std")


def target_names(runs: Sequence[ReportRun]) -> list[str]:
    """Names of the targets of all runs: whatever logs a ``NAME/loss`` or ``NAME/accuracy``."""
    names: dict[str, None] = {}
    for run in runs:
        for name in run.metrics.names:
            target, slash, quantity = name.removeprefix(VALID).rpartition("/")
            if slash and quantity in ("loss", "accuracy"):
                names[target] = None
    return list(names)


def target_panels(runs: Sequence[ReportRun], target: str) -> list[Panel]:
    """The panels of one target."""
    accuracies = (f"{target}/accuracy", f"{VALID}{target}/accuracy")
    is_class = any(name in run.metrics.names for run in runs for name in accuracies)

    def baseline(quantity: str, label: str, style: Style) -> list[Curve]:
        return _baselines(runs, f"{target}/{quantity}", label, style)

    if not is_class:
        return [
            Panel(
                f"{target}: error",
                [
                    *_train_and_valid(runs, f"{target}/loss"),
                    *baseline("variance", "mean", "constant"),
                    *baseline("constant_loss", "mean", "constant"),  # a teacher's
                    *baseline("copy_loss", "copy", "copy"),
                ],
                _REGRESSION,
                "loss",
                may_be_log=True,
            )
        ]
    return [
        Panel(
            f"{target}: cross-entropy",
            [
                *_train_and_valid(runs, f"{target}/loss"),
                *baseline("unigram_entropy", "unigram entropy", "constant"),
            ],
            _CROSS_ENTROPY,
            "nats",
        ),
        Panel(
            f"{target}: accuracy",
            [
                *_train_and_valid(runs, f"{target}/accuracy"),
                *baseline("majority_rate", "most frequent", "constant"),
                *baseline("copy_accuracy", "copy", "copy"),
            ],
            _ACCURACY,
            "share of frames",
        ),
    ]


def run_panels(runs: Sequence[ReportRun]) -> list[Panel]:
    """The panels of the run as a whole."""
    panels = [Panel("Total loss", _train_and_valid(runs, "loss"), _TOTAL, "loss", may_be_log=True)]
    for name, title, unit, note in _RUN_PANELS:
        peaks = name == "optim/grad_norm"
        curves = _train_and_valid(runs, name)
        panels.append(Panel(title, curves, note, unit, may_be_log=peaks, keep_peaks=peaks))
    return [panel for panel in panels if not panel.is_empty]


def health_panels(runs: Sequence[ReportRun]) -> list[Panel]:
    """Whether features, targets and predictions still differ from frame to frame."""
    panels = []
    for name in _health_names(runs):
        quantity = name.rpartition("/")[2]
        curves = [*_limits(runs, name), *_train_and_valid(runs, name)]
        panels.append(Panel(name, curves, _HEALTH.get(quantity, _OTHER)))
    return panels


def probe_panels(runs: Sequence[ReportRun]) -> list[Panel]:
    """Answers of probes beside training, one panel for each task."""
    panels = []
    for name, task, metric in _probed(runs):
        curves = [
            *_lines(runs, name, "probe", "valid"),
            *_lines(runs, f"{name}_low", "95 %", "train"),
            *_lines(runs, f"{name}_high", "95 %", "train"),
            *_lines(runs, f"probe/{task}/untrained", "untrained", "constant"),
            *_lines(runs, f"probe/{task}/log-mel", "log-mel", "copy"),
        ]
        panels.append(Panel(f"probe of {task}", curves, _PROBE, metric))
    return panels


def _probed(runs: Sequence[ReportRun]) -> list[tuple[str, str, str]]:
    """Name, task and metric of every answer; an interval's ends have its name and an ending."""
    matches = (re.fullmatch(r"probe/(.+)/test_(.+)", name) for name in _names(runs))
    found = {match[0]: (match[0], match[1], match[2]) for match in matches if match}
    ends = {f"{name}{end}" for name in found for end in ("_low", "_high")}
    return [answer for name, answer in found.items() if name not in ends]


def _lines(runs: Sequence[ReportRun], name: str, label: str, style: Style) -> list[Curve]:
    return [
        Curve(series, label, style, number)
        for number, run in enumerate(runs)
        if (series := run.metrics.series(name)).steps
    ]


def other_panels(runs: Sequence[ReportRun]) -> list[Panel]:
    """One plain panel for every quantity that no other panel shows."""
    # The rate says nothing that crops per second do not.
    shown = {"loss", "audio_hours", "perf/audio_hours_per_day", *(name for name, *_ in _RUN_PANELS)}
    shown |= {f"{target}/{quantity}" for target in target_names(runs) for quantity in _USED}
    shown |= set(_health_names(runs))
    for name, task, _ in _probed(runs):
        shown |= {name, f"{name}_low", f"{name}_high"}
        shown |= {f"probe/{task}/untrained", f"probe/{task}/log-mel"}
    names = _names(runs)
    panels = [
        Panel(name, _train_and_valid(runs, name), _OTHER) for name in names if name not in shown
    ]
    return [panel for panel in panels if not panel.is_empty]


def _names(runs: Sequence[ReportRun]) -> list[str]:
    names = (name.removeprefix(VALID) for run in runs for name in run.metrics.names)
    return list(dict.fromkeys(names))


def _health_names(runs: Sequence[ReportRun]) -> list[str]:
    return [
        name
        for name in _names(runs)
        if name.startswith("health/") or name.rpartition("/")[2] in _SPREADS
    ]


def _limits(runs: Sequence[ReportRun], name: str) -> list[Curve]:
    """Where a run would have stopped, from the first update that is judged."""
    curves = []
    for number, run in enumerate(runs):
        steps = run.metrics.series(name).steps
        limit = run.setting(f"health.min_{name.rpartition('/')[2]}")
        first = run.setting("health.after_steps") or 0.0
        if steps and limit and not run.is_reference and first < steps[-1]:
            series = Series((max(first, steps[0]), steps[-1]), (limit, limit))
            curves.append(Curve(series, "limit", "constant", number))
    return curves


def _train_and_valid(runs: Sequence[ReportRun], name: str) -> list[Curve]:
    curves = []
    for number, run in enumerate(runs):
        train, valid = run.metrics.series(name), run.metrics.series(VALID + name)
        if run.is_reference:
            curves += [Curve(s, "reference", "band", number) for s in (train, valid) if s.steps]
            continue
        if train.steps:
            curves.append(Curve(train, _TRAIN, "train", number))
        if valid.steps:
            curves.append(Curve(valid, _HELD_OUT, "valid", number))
    return curves


def _baselines(runs: Sequence[ReportRun], name: str, label: str, style: Style) -> list[Curve]:
    """What costs nothing, on the held-out tracks where there are any: those stay the same."""
    curves = []
    for number, run in enumerate(runs):
        found = (run.metrics.series(prefix + name) for prefix in (VALID, ""))
        if series := next((series for series in found if series.steps), None):
            curves.append(Curve(series, label, style, number))
    return curves
