"""Exports for Hugging Face: ``python launch/export.py RUN_OR_CHECKPOINT OUT [--as FORMAT]``.

Takes a run's newest checkpoint, or the one given, writes a folder that transformers loads, and
proves on two seconds of audio that every layer gives what it gave in training.
"""

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from etude.data.errors import InputError
from etude.launch import cli
from etude.pretrain.errors import CheckpointError, NumericsError

if TYPE_CHECKING:
    from etude.models.encoder import Encoder
    from etude.models.hf.card import CardFacts

Format = Literal["mert", "hubert", "data2vec"]

FORMATS: tuple[Format, ...] = get_args(Format)


def main() -> int:
    """Parses the command line and exports."""
    arguments = _parser().parse_args()
    source, out, asked = arguments.source, arguments.out, arguments.format
    checkpoint = find_checkpoint(source)

    # Imported late: a wrong path should not wait for torch, nor a damaged file for transformers.
    from etude.models.hf.config import check_expressible, natural_format

    encoder = _load(checkpoint)
    format = asked or natural_format(encoder.config)
    try:
        check_expressible(encoder.config, format)
    except ValueError as error:
        raise InputError(str(error)) from error

    from etude.models.hf.card import usage_lines
    from etude.models.hf.export import check_destination, export_encoder

    try:
        check_destination(out)
    except FileExistsError as error:
        raise InputError(str(error)) from error
    card = _card_facts(checkpoint, out, probe=arguments.probe)
    try:
        differences = export_encoder(encoder, out, format=format, card=card)
    except FloatingPointError as error:
        raise NumericsError(f"{checkpoint} cannot be exported: {error}") from error

    worst = max(range(len(differences)), key=differences.__getitem__)
    print(f"exported {checkpoint} as {format} to {out}")
    print(
        f"verified in transformers: {len(differences)} hidden states, largest difference "
        f"{differences[worst]:.1e} (hidden state {worst})"
    )
    print("  " + " ".join(f"{number}:{value:.0e}" for number, value in enumerate(differences)))
    print("use it:")
    for line in usage_lines(str(out), encoder.config, format):
        print(f"  {line}")
    return 0


def find_checkpoint(source: Path) -> Path:
    """The folder that holds the encoder: ``source`` itself, or the newest of the run ``source``.

    :raises InputError: if ``source`` does not exist.
    :raises CheckpointError: if it holds no checkpoint.
    """
    from etude.pretrain.report_run import step_of

    if not source.is_dir():
        raise InputError(f"there is no run or checkpoint folder {source}.")
    if _holds_encoder(source):
        return source
    steps = {
        step: folder
        for folder in source.glob("checkpoints/step-*")
        if (step := step_of(folder)) is not None and _holds_encoder(folder)
    }
    if not steps:
        raise CheckpointError(
            f"{source} must hold encoder.json and encoder.safetensors, or a run's checkpoints with "
            "them under checkpoints/step-*/, but holds neither: train first, or give the folder of "
            "a checkpoint."
        )
    return steps[max(steps)]


def _holds_encoder(folder: Path) -> bool:
    # Spelt out, because their module imports torch.
    return all((folder / name).is_file() for name in ("encoder.json", "encoder.safetensors"))


def _load(checkpoint: Path) -> "Encoder":
    from safetensors import SafetensorError

    from etude.models.weights import load_encoder

    try:
        return load_encoder(checkpoint)
    except (ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"the encoder in {checkpoint} cannot be loaded: {error}") from error


def _card_facts(checkpoint: Path, out: Path, *, probe: Path | None) -> "CardFacts":
    """What the run's folder adds to the weights; a checkpoint on its own adds nothing."""
    from etude.models.hf.card import CardFacts
    from etude.models.weights import WEIGHTS_NAME
    from etude.pretrain.report_probe import read_probe
    from etude.pretrain.report_run import (
        METRICS_NAME,
        describe_targets,
        read_config,
        read_metrics,
        step_of,
    )

    place = checkpoint.resolve()
    step, run, hours = step_of(place), None, None
    text, config, probed = None, None, None
    if step is not None and place.parent.name == "checkpoints":
        run = place.parents[1]
        text, config = read_config(run)
        if (run / METRICS_NAME).is_file():
            hours = read_metrics(run / METRICS_NAME).last("audio_hours", until_step=step)
    if folder := probe or (run and run / "probe"):
        probed = read_probe(folder)
    if probe is not None and (probed is None or probed.problem):
        raise InputError(
            f"--probe must be a folder made by launch/probe.py, but {probe} has no readable "
            "results.json."
        )
    data = (config or {}).get("data")
    written = (checkpoint / WEIGHTS_NAME).stat().st_mtime
    return CardFacts(
        name=out.resolve().name,
        paradigm=describe_targets(config),
        trained_on=datetime.fromtimestamp(written, UTC).date(),
        recipe=run.name if run else None,
        step=step,
        audio_hours=hours,
        context_seconds=data.get("crop_seconds") if isinstance(data, dict) else None,
        config_yaml=text,
        corpora=_describe_corpora(data),
        notes=_notes(config),
        probes=() if probed is None else probed.rows,
    )


def _describe_corpora(data: object) -> tuple[str, ...]:
    """What the corpora's indices say, where they are still there."""
    given = data.get("corpus") if isinstance(data, dict) else None
    several = given if isinstance(given, list) else [{"corpus": given}]
    places = [corpus.get("corpus") for corpus in several if isinstance(corpus, dict)]
    return tuple(said for place in places if (said := _describe_corpus(place)))


def _describe_corpus(place: object) -> str | None:
    from etude.data.shards import open_corpus

    try:
        corpus = open_corpus(Path(str(place)))
    except InputError:
        return None
    hours = {split: corpus.seconds(split) / 3600 for split in ("train", "valid")}
    told = (
        f"Trained on {hours['train']:,.4g} hours of audio in {corpus.clips('train'):,} clips, and "
        f"{hours['valid']:,.4g} hours were held out (corpus {corpus.fingerprint[:12]})."
    )
    if not corpus.licences:  # its owner's to know
        return f"{told} Say here what music it is and under which licences it came."
    licences = ", ".join(f"{name} ({s / 3600:,.4g} h)" for name, s in corpus.licences.items())
    return f"{told} Licences, as given when it was prepared: {licences}."


def _notes(config: dict[str, Any] | None) -> tuple[str, ...]:
    targets = ((config or {}).get("objective") or {}).get("targets") or {}
    kinds = {target.get("kind") for target in targets.values() if isinstance(target, dict)}
    if "codec" not in kinds:
        return ()
    return (
        "Its targets were tokens of EnCodec 24 kHz. Before publishing, look up the licence of the "
        "codec weights that made them: statements about Meta's differ between places.",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launch/export.py",
        description="Writes a trained encoder as a folder that transformers loads, and verifies "
        "every layer.",
    )
    parser.add_argument(
        "source",
        metavar="RUN_OR_CHECKPOINT",
        type=Path,
        help="run folder (its newest checkpoint) or checkpoint folder",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="new folder, or an earlier export")
    parser.add_argument(
        "--as",
        dest="format",
        choices=FORMATS,
        help="kind of model (default: what the encoder is: hubert with one positional "
        "convolution, data2vec with a stack)",
    )
    parser.add_argument(
        "--probe",
        type=Path,
        metavar="DIR",
        help="results of launch/probe.py for the card (default: RUN/probe, where it exists)",
    )
    return parser


if __name__ == "__main__":
    cli.run(main)
