"""The model card (``README.md`` of an export): what a reader of the model's page needs to know."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from etude.models.config import EncoderConfig
from etude.models.hf.config import MODEL_CLASSES, Format


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What the weights themselves do not tell."""

    name: str
    """What to call the model."""

    paradigm: str
    """Kind of pretraining, such as ``masked prediction (k-means, CQT)``."""

    trained_on: date
    """Date of the weights."""

    recipe: str | None = None
    """Name of the configuration it was trained with."""

    step: int | None = None
    """Optimizer updates."""

    audio_hours: float | None = None
    """Audio seen in training, repetitions counted, in hours."""

    context_seconds: float | None = None
    """Length of a training crop in seconds."""

    config_yaml: str | None = None
    """Resolved configuration of the run."""

    corpora: Sequence[str] = ()
    """Of each corpus it was trained on, a few sentences on its audio."""

    notes: Sequence[str] = ()
    """Further sentences that whoever publishes the model has to know."""

    probes: Sequence[Sequence[str]] = ()
    """Results of ``launch/probe.py`` as rows of cells, the first being the header."""


def usage_lines(folder: str, config: EncoderConfig, format: Format) -> list[str]:
    """Five lines of Python that give the features of a waveform."""
    model_class, trust = MODEL_CLASSES[format], ""
    if format == "mert":
        model_class, trust = "AutoModel", ", trust_remote_code=True"
    return [
        f"from transformers import {model_class}, Wav2Vec2FeatureExtractor",
        f'processor = Wav2Vec2FeatureExtractor.from_pretrained("{folder}")',
        f'model = {model_class}.from_pretrained("{folder}"{trust}).eval()',
        f"inputs = processor(waveform, sampling_rate={config.sample_rate}, "
        'return_tensors="pt")  # mono, in [-1, 1]',
        "hidden_states = model(**inputs, output_hidden_states=True).hidden_states"
        f"  # {config.layers + 1} x (1, frames, {config.dim})",
    ]


def model_card(config: EncoderConfig, facts: CardFacts, *, format: Format, parameters: int) -> str:
    """The card as Markdown with metadata on top.

    :param format: what it is exported as.
    :param parameters: number of parameters of the exported model.
    """
    seen = "unknown" if facts.audio_hours is None else f"{facts.audio_hours:,.4g} h"
    context = "unknown" if facts.context_seconds is None else f"{facts.context_seconds:g} s"
    row = {
        "pretraining": facts.paradigm,
        "audio seen": seen,
        "context": context,
        "parameters": f"{parameters / 1e6:.3g} M",
        "layers-dim": f"{config.layers}-{config.dim}",
        "feature rate": f"{config.grid.frame_rate:g} Hz",
        "sample rate": f"{config.sample_rate / 1000:g} kHz",
        "date": facts.trained_on.isoformat(),
    }
    heard = "; the processor brings it to mean 0 and variance 1" if config.normalize else ""
    updates = "" if facts.step is None else f", stopped after {facts.step:,} updates"
    recipe = "" if facts.recipe is None else f"\nRecipe: `{facts.recipe}`{updates}.\n"
    sections = [
        "---\n"
        "library_name: transformers\n"
        "pipeline_tag: feature-extraction\n"
        "tags:\n- music\n- audio\n- self-supervised\n"
        "---\n",
        f"# {facts.name}\n",
        "A music encoder pretrained without labels. Every layer gives features, "
        f"{config.grid.frame_rate:g} per second of audio; which layer serves best depends on the "
        "task.\n",
        markdown_table([list(row), list(row.values())]) + recipe,
        "## Use\n",
        "```python\n" + "\n".join(usage_lines(f"path/to/{facts.name}", config, format)) + "\n```\n",
        f"Feed mono audio at {config.sample_rate} Hz, as floating-point numbers between -1 and "
        f"1{heard}. `hidden_states[0]` is the input of the first layer, "
        f"`hidden_states[{config.layers}]` the output of the last"
        f"{_last_layer(config, format)}.\n",
    ]
    if sentences := [*facts.corpora, *facts.notes]:
        sections += ["## Data and targets\n", "\n\n".join(sentences) + "\n"]
    if facts.probes:
        sections += [
            "## Which layer for what: frozen features, probed\n",
            "What a probe on the frozen features of one layer scores on the test (accuracy of a "
            "linear classifier where nothing else is said), its 95 % interval, and the layer that "
            "held-out data chose for the task.\n",
            markdown_table(facts.probes),
        ]
    if facts.config_yaml is not None:
        sections += [
            "## Training configuration\n",
            "<details><summary>resolved configuration</summary>\n",
            f"```yaml\n{facts.config_yaml.strip()}\n```\n",
            "</details>\n",
        ]
    return "\n".join(sections)


def _last_layer(config: EncoderConfig, format: Format) -> str:
    if format != "hubert" or config.norm != "pre":
        return ""
    return (
        ": after the final norm in transformers 4, before it in 5, where `last_hidden_state` has "
        "it after"
    )


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as a Markdown table, the first row being the header."""
    cells = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(cells[0]), *lines[1:]]) + "\n"
