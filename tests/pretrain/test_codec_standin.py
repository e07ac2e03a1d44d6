"""Stand-in codec weights: the authors' layout, books in balanced use, codes that go with sound."""

import sys
from pathlib import Path

import pytest
import torch
from codec_weights import FRAMES, clips, fitted, standin_weights
from encodec import EncodecModel
from torch import Tensor

from etude.data.errors import InputError
from etude.data.shards import Corpus
from etude.launch.standin_codec import main
from etude.pretrain import codec_standin
from etude.pretrain.codec import Codec, codec_from_tensors, load_codec, untrained_model
from etude.pretrain.codec_standin import BookUsage, StandinReport, fit_standin
from etude.pretrain.errors import ConfigError


@pytest.fixture(scope="module")
def codec() -> Codec:
    return codec_from_tensors(fitted()[0])


@pytest.fixture(scope="module")
def embedding(codec: Codec) -> Tensor:
    """Of the clips that the codebooks were fitted to, (1, frames, D)."""
    return codec.embed(clips(7)).flatten(0, 1)[None, :FRAMES]


def test_every_book_is_at_least_half_used_and_no_code_has_a_tenth(
    codec: Codec, embedding: Tensor
) -> None:
    report = fitted()[1]
    codes = codec.quantize(embedding)[0]
    assert report.frames == FRAMES and len(report.books) == 8 and report.balanced
    for book, code_N in zip(report.books, codes.T, strict=True):
        share_V = torch.bincount(code_N, minlength=1024) / FRAMES
        # What the report says is what the codec gives for the same audio.
        assert int((share_V > 0).sum()) == pytest.approx(book.used, abs=5) and book.used >= 512
        assert float(share_V.max()) == pytest.approx(book.largest_share, abs=2e-3)
        assert book.largest_share <= 0.1


def test_each_book_leaves_less_of_the_embedding(codec: Codec) -> None:
    left = [1.0, *(book.residual for book in fitted()[1].books)]
    assert all(after < before for before, after in zip(left, left[1:], strict=False))
    residual = embedding = codec.embed(clips(2, first=90))  # which the books were not fitted to
    codes = codec.quantize(embedding)
    kept = []
    for book_VD, code_BF in zip(codec.codebooks_KVD, codes.unbind(2), strict=True):
        residual = residual - book_VD[code_BF]
        kept.append(float(residual.square().mean() / embedding.square().mean()))
    assert kept[0] < 0.6 and kept[-1] < 0.8 * kept[0]


def test_embeddings_are_standardised_and_change_slowly(embedding: Tensor) -> None:
    assert float(embedding[0].mean(dim=0).abs().max()) < 0.01
    assert float((embedding[0].std(dim=0) - 1).abs().max()) < 0.01
    step = embedding[0, 1:] - embedding[0, :-1]
    assert float(step.square().mean()) < 0.2  # 2 would be frames that have nothing in common


def test_encodec_itself_loads_the_file(tmp_path: Path) -> None:
    state = torch.load(standin_weights(tmp_path), weights_only=True)
    model: EncodecModel = untrained_model(seed=9)
    assert model.load_state_dict(state, strict=True)


def test_the_seed_and_the_audio_decide_everything() -> None:
    def fit(seed: int) -> dict[str, Tensor]:
        return fit_standin(iter(clips(2, seconds=7).split(1)), seed=seed, iterations=1)[0]

    torch.manual_seed(1)
    first = fit(0)
    drawn = torch.rand(2)
    second = fit(0)
    assert all(torch.equal(first[name], second[name]) for name in first)
    # Nobody else's random numbers are taken.
    torch.manual_seed(1)
    assert torch.equal(torch.rand(2), drawn)


def test_too_little_audio_is_refused() -> None:
    with pytest.raises(ConfigError, match="1024 codes needs at least as many frames, .* has 300"):
        fit_standin(iter(clips(1).split(1)), seed=0)
    with pytest.raises(ConfigError, match="has 0"):
        fit_standin(iter([torch.zeros(1, 100)]), seed=0)


@pytest.mark.parametrize(
    ("used", "largest", "balanced"), [(512, 0.1, True), (511, 0.1, False), (900, 0.11, False)]
)
def test_balance_is_a_property_of_every_book(used: int, largest: float, balanced: bool) -> None:
    good = BookUsage(size=1024, used=1000, largest_share=0.01, entropy=6.5, residual=0.1)
    other = BookUsage(size=1024, used=used, largest_share=largest, entropy=5.0, residual=0.05)
    assert StandinReport(30_000, (good, other)).balanced is balanced


# --- the command


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["standin_codec.py", *map(str, arguments)])
    return main()


def test_the_command_writes_weights_and_says_what_they_are(
    small_corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "made" / "codec.th"
    assert command(monkeypatch, small_corpus.root, "--out", out, "--minutes", 0.4) == 0
    printed = capsys.readouterr().out
    codec = load_codec(out)
    assert f"STAND-IN weights ({codec.weights_sha256[:12]}), fitted to 1,800 frames" in printed
    assert "say little about EnCodec's own" in printed
    table = printed.splitlines()
    assert table[0].split()[0] == "codebook" and table[8].split()[0] == "7"


def test_unbalanced_books_are_not_written(
    small_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constant = BookUsage(size=1024, used=1, largest_share=1.0, entropy=0.0, residual=0.0)
    monkeypatch.setattr(
        codec_standin, "fit_standin", lambda *_, **__: ({}, StandinReport(9_000, (constant,)))
    )
    with pytest.raises(InputError, match="must be at least half used .* Nothing was written"):
        command(monkeypatch, small_corpus.root, "--out", tmp_path / "a.th")
    assert not (tmp_path / "a.th").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "a.th", "--minutes", "0"), "--minutes must be more than 0, but is 0"),
        (("--out", "a.safetensors"), r"--out must not end in \.safetensors"),
    ],
)
def test_impossible_options_are_refused(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=message):
        command(monkeypatch, tmp_path, *arguments)
