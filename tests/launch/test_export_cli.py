"""``launch/export.py`` as a user runs it: what it prints, writes, and how it ends."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from etude.data.shards import Corpus
from etude.models.config import EncoderConfig
from etude.models.encoder import Encoder
from etude.models.weights import load_encoder, save_encoder

LAUNCH = Path(__file__).parents[2] / "launch"

STACK = {"conv_norm": "layer", "position_depth": 5, "position_kernel": 95, "normalize": True}


def export(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, LAUNCH / "export.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


def save_small_encoder(folder: Path, *, seed: int = 0, **settings: object) -> None:
    torch.manual_seed(seed)
    small = {"conv_dims": (16,) * 7, "dim": 16, "ffn_dim": 32, "heads": 2, "layers": 2}
    folder.mkdir(parents=True)
    save_encoder(Encoder(EncoderConfig.model_validate({**small, **settings})), folder)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 20 steps whose third checkpoint was being written when it was killed."""
    folder = tmp_path / "tiny"
    save_small_encoder(folder / "checkpoints" / "step-00000010", seed=1)
    save_small_encoder(folder / "checkpoints" / "step-00000020", seed=2)
    save_small_encoder(folder / "checkpoints" / "step-00000030.tmp", seed=3)
    (folder / "config.yaml").write_text(
        "config:\n  seed: 7\n  data: {crop_seconds: 5.0}\n"
        "  objective: {targets: {logmel: {kind: kmeans}, cqt: {kind: cqt}}}\n"
        "versions: {torch: 2.9.1}\n"
    )
    lines = [{"step": step, "audio_hours": step / 100} for step in (10, 20, 30)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 3')
    return folder


def test_a_run_gives_its_newest_whole_checkpoint(run: Path, tmp_path: Path) -> None:
    done = export(run, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "step-00000020 as hubert" in done.stdout and "3 hidden states" in done.stdout
    usage = done.stdout.split("use it:\n")[1].splitlines()
    assert len(usage) == 5 and str(tmp_path / "out") in usage[1]

    from transformers import HubertModel

    model = HubertModel.from_pretrained(tmp_path / "out")
    newest = load_encoder(run / "checkpoints" / "step-00000020")
    assert torch.equal(model.masked_spec_embed, newest.mask_embedding)

    card = (tmp_path / "out" / "README.md").read_text()
    assert "| masked prediction (k-means, CQT) | 0.2 h | 5 s |" in card
    assert "Recipe: `tiny`, stopped after 20 updates." in card and "seed: 7" in card

    # A checkpoint that is named is taken, and an earlier export is replaced.
    again = export(run / "checkpoints" / "step-00000010", tmp_path / "out", "--as", "hubert")
    assert again.returncode == 0, again.stderr
    assert "| 0.1 h |" in (tmp_path / "out" / "README.md").read_text()


def test_the_card_tells_of_the_corpus_and_of_a_codec(
    run: Path, tmp_path: Path, small_corpus: Corpus
) -> None:
    licensed = tmp_path / "licensed"
    shutil.copytree(small_corpus.root, licensed)
    index = json.loads((licensed / "index.json").read_text())
    index["licences"] = {"unknown": 36.0, "CC BY 4.0": 90.0}
    (licensed / "index.json").write_text(json.dumps(index))
    config = run / "config.yaml"
    corpora = f"corpus: [{{corpus: {small_corpus.root}}}, {{corpus: {licensed}}}]"
    text = config.read_text().replace("crop_seconds: 5.0", corpora)
    config.write_text(text.replace("logmel: {kind: kmeans}", "tokens: {kind: codec}"))
    done = export(run, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "out" / "README.md").read_text()
    hours = small_corpus.seconds("train") / 3600
    assert f"Trained on {hours:,.4g} hours of audio in 16 clips" in card
    assert small_corpus.fingerprint[:12] in card
    assert "Say here what music it is" in card
    assert "Licences, as given when it was prepared: CC BY 4.0 (0.025 h), unknown (0.01 h)." in card
    assert "Its targets were tokens of EnCodec 24 kHz." in card


def test_a_missing_run_is_a_usage_error(tmp_path: Path) -> None:
    done = export(tmp_path / "nowhere", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr == f"error: there is no run or checkpoint folder {tmp_path / 'nowhere'}.\n"


def test_a_run_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    done = export(tmp_path / "run", tmp_path / "out")
    assert done.returncode == 5 and "encoder.safetensors" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()


def test_damaged_weights_are_no_checkpoint(run: Path, tmp_path: Path) -> None:
    (run / "checkpoints" / "step-00000020" / "encoder.safetensors").write_bytes(b"torn")
    done = export(run, tmp_path / "out")
    assert done.returncode == 5 and "cannot be loaded" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_mert_comes_with_its_code(run: Path, tmp_path: Path) -> None:
    done = export(run, tmp_path / "out", "--as", "mert")
    assert done.returncode == 0, done.stderr
    usage = done.stdout.split("use it:\n")[1].splitlines()
    assert len(usage) == 5 and "AutoModel.from_pretrained" in usage[2]
    assert "trust_remote_code=True" in usage[2]
    assert (tmp_path / "out" / "modeling_MERT.py").is_file()


@pytest.mark.parametrize("asked", [(), ("--as", "data2vec")], ids=["by default", "asked for"])
def test_a_stack_of_positions_is_exported_as_data2vec(
    tmp_path: Path, asked: tuple[str, ...]
) -> None:
    save_small_encoder(tmp_path / "stacked", **STACK)
    done = export(tmp_path / "stacked", tmp_path / "out", *asked)
    assert done.returncode == 0, done.stderr
    assert "as data2vec to" in done.stdout and "3 hidden states" in done.stdout
    usage = done.stdout.split("use it:\n")[1].splitlines()
    assert len(usage) == 5 and "Data2VecAudioModel.from_pretrained" in usage[2]

    from transformers import Data2VecAudioModel

    model = Data2VecAudioModel.from_pretrained(tmp_path / "out")
    assert torch.equal(model.masked_spec_embed, load_encoder(tmp_path / "stacked").mask_embedding)


@pytest.mark.parametrize(
    ("settings", "format", "reason"),
    [
        (STACK, "hubert", "position_depth is 5: export such an encoder (music2vec) as data2vec"),
        ({}, "data2vec", "position_depth is 1: export such an encoder (MERT) as hubert"),
        ({**STACK, "norm": "pre"}, None, "model.norm is pre"),
    ],
)
def test_an_encoder_that_the_format_cannot_be_is_refused(
    tmp_path: Path, settings: dict[str, object], format: str | None, reason: str
) -> None:
    save_small_encoder(tmp_path / "encoder", **settings)
    done = export(tmp_path / "encoder", tmp_path / "out", *(("--as", format) if format else ()))
    assert done.returncode == 2 and reason in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()


def test_a_folder_of_the_users_is_not_touched(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    done = export(run, tmp_path / "out")
    assert done.returncode == 2 and "no earlier export" in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]
