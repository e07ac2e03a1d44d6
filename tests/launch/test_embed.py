"""``launch/embed.py`` as a user runs it: what it writes, what it leaves out, how it ends."""

import datetime
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import soxr
import torch
from audio_files import RATE, Samples, tune, write
from safetensors import safe_open
from training_parts import GRID, ROOT, small_encoder

from etude.data.audio import BLOCK_FRAMES
from etude.data.mono_stream import mono_blocks
from etude.data.sources import scan_sources
from etude.launch import cli
from etude.launch import embed as command
from etude.models.embedding import embed_waveform
from etude.models.encoder import Encoder
from etude.models.hf.card import CardFacts
from etude.models.hf.export import export_encoder
from etude.models.weights import load_encoder, save_encoder
from etude.models.windows import Windowing

STACK = {"conv_norm": "layer", "position_depth": 5, "position_kernel": 15, "normalize": True}


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str


Embed = Callable[..., Done]


@pytest.fixture
def embed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Embed]:
    """The command in this process: importing torch anew would be most of a test's time."""
    before = signal.getsignal(signal.SIGTERM)

    def call(*words: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["embed.py", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.run(command.main)
        printed = capsys.readouterr()
        return Done(int(ended.value.code or 0), printed.out, printed.err)

    yield call
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run on crops of 1 s, stopped after 20 steps."""
    folder = tmp_path / "tiny"
    for step in (10, 20):
        checkpoint = folder / "checkpoints" / f"step-{step:08}"
        checkpoint.mkdir(parents=True)
        save_encoder(small_encoder(seed=step), checkpoint)
    (folder / "config.yaml").write_text("config:\n  data: {crop_seconds: 1.0}\nversions: {}\n")
    return folder


@pytest.fixture
def music(tmp_path: Path) -> Path:
    """Four files of several formats and lengths."""
    folder = tmp_path / "music"
    write(folder / "first.flac", tune(3.3, seed=1))
    write(folder / "deep er" / "second.wav", tune(0.7, seed=2))
    write(folder / "deep er" / "second.ogg", tune(2.1, seed=3))
    write(folder / "third.mp3", tune(1.6, seed=4))
    return folder


NAMES = ["deep er/second.ogg", "deep er/second.wav", "first.flac", "third.mp3"]


def encoder_of(run: Path) -> Encoder:
    return load_encoder(run / "checkpoints" / "step-00000020")


def heard(path: Path, rate: int = RATE) -> Samples:
    """The file as the model hears it."""
    (source,) = scan_sources([path], outside=Path("/nowhere")).sources
    return np.concatenate(list(mono_blocks(source, rate)))


def expected(run: Path, path: Path, layers: Any, windowing: Windowing) -> Samples:
    """Features (F, L, D) of a file."""
    encoder = encoder_of(run)
    return embed_waveform(lambda w: encoder(w).hidden_states, heard(path), windowing, layers)


ONE_SECOND = Windowing(GRID, 24_000, 15)


def metadata_of(path: Path) -> dict[str, Any]:
    with np.load(path) as file:
        metadata: dict[str, Any] = json.loads(str(file["metadata"]))
    return metadata


def files_in(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_every_file_gets_its_features_times_and_what_they_are(
    embed: Embed, run: Path, music: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = embed(run, music, "--out", out)
    assert done.status == 0, done.err
    assert files_in(out) == [f"music/{name}.npz" for name in NAMES]
    assert "4 files embedded" in done.out and "windows of 1 s, each 0.2 s into" in done.out
    for name in NAMES:
        with np.load(out / "music" / f"{name}.npz") as file:
            assert sorted(file.files) == ["features", "metadata", "times"]
            features, times = file["features"], file["times"]
        samples = heard(music / name)
        frames = GRID.num_frames(len(samples))
        assert features.shape == (frames, 32) and features.dtype == np.float32
        assert times.tolist() == GRID.frame_times(frames)
        wanted = expected(run, music / name, [2], ONE_SECOND)[:, 0]
        np.testing.assert_allclose(features, wanted, atol=1e-5)
        metadata = metadata_of(out / "music" / f"{name}.npz")
        assert len(metadata.pop("weights_sha256")) == 64
        assert metadata == {
            "model": "tiny@20",
            "source": f"music/{name}",
            "source_bytes": (music / name).stat().st_size,
            "seconds": len(samples) / RATE,
            "frames": frames,
            "layers": [2],
            "sample_rate": 24_000,
            "frame_rate": 75.0,
            "pooling": "none",
            "pool_seconds": None,
            "window_seconds": 1.0,
            "overlap_seconds": 0.2,
            "dtype": "float32",
        }


def test_as_a_process_it_says_what_it_does_in_plain_lines(
    run: Path, music: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch" / "embed.py"), run, music, "--out", tmp_path / "out"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0 and "embedding: 4 of 4 files\n" in done.stderr
    assert "\r" not in done.stderr and "Traceback" not in done.stderr
    assert len(files_in(tmp_path / "out")) == 4


def test_batches_of_windows_of_many_files_change_nothing(
    embed: Embed, run: Path, music: Path, tmp_path: Path
) -> None:
    for batch in (1, 5):
        done = embed(run, music, "--out", tmp_path / str(batch), "--batch", batch)
        assert done.status == 0, done.err
    for name in NAMES:
        alone, together = (np.load(tmp_path / b / "music" / f"{name}.npz") for b in ("1", "5"))
        np.testing.assert_allclose(together["features"], alone["features"], atol=1e-5)
        assert np.array_equal(together["times"], alone["times"])


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("layers", "numbers"), [("2,0", [2, 0]), ("all", [0, 1, 2])])
def test_several_layers_come_first_in_either_format(
    embed: Embed,
    run: Path,
    music: Path,
    tmp_path: Path,
    suffix: str,
    dtype: str,
    layers: str,
    numbers: list[int],
) -> None:
    out, song = tmp_path / "out", music / "first.flac"
    options = ("--format", suffix, "--dtype", dtype, "--layers", layers)
    done = embed(run, song, "--out", out, *options)
    assert done.status == 0, done.err
    path = out / f"first.flac.{suffix}"
    if suffix == "npz":
        arrays, metadata = dict(np.load(path)), metadata_of(path)
    else:
        arrays = safetensors.numpy.load_file(path)
        with safe_open(path, "np") as file:
            metadata = json.loads(file.metadata()["metadata"])
    wanted_FLD = expected(run, song, numbers, ONE_SECOND)
    assert arrays["features"].dtype == np.dtype(dtype)
    np.testing.assert_allclose(
        arrays["features"],
        wanted_FLD.transpose(1, 0, 2),
        atol=1e-5 if dtype == "float32" else 2e-3,
    )
    assert arrays["times"].tolist() == GRID.frame_times(len(wanted_FLD))
    assert metadata["layers"] == numbers and metadata["dtype"] == dtype


def test_the_mean_of_all_layers_is_one(
    embed: Embed, run: Path, music: Path, tmp_path: Path
) -> None:
    done = embed(run, music / "first.flac", "--out", tmp_path / "out", "--layers", "mean")
    assert done.status == 0, done.err
    path = tmp_path / "out" / "first.flac.npz"
    wanted = expected(run, music / "first.flac", range(3), ONE_SECOND).mean(axis=1)
    np.testing.assert_allclose(np.load(path)["features"], wanted, atol=1e-5)
    assert metadata_of(path)["layers"] == "mean"


@pytest.mark.parametrize("layers", ["2", "0,2"])
def test_pooled_features_are_means_over_the_frames_of_the_whole_file(
    embed: Embed, run: Path, music: Path, tmp_path: Path, layers: str
) -> None:
    song = music / "first.flac"
    for pool in ("none", "window", "file"):
        seconds = ("--pool-seconds", 0.5) if pool == "window" else ()
        options = ("--layers", layers, "--pool", pool, *seconds)
        done = embed(run, song, "--out", tmp_path / pool, *options)
        assert done.status == 0, done.err
    none, window, file = (
        np.load(tmp_path / pool / "first.flac.npz") for pool in ("none", "window", "file")
    )
    frames, times = none["features"], none["times"]  # (L, F, D) or (F, D)
    np.testing.assert_allclose(file["features"], frames.mean(axis=-2), atol=1e-6)
    assert file["features"].shape == (*frames.shape[:-2], 32) and file["times"].shape == ()
    assert file["times"] == pytest.approx(times.mean())
    assert window["features"].shape == (*frames.shape[:-2], 7, 32)  # 3.3 s
    for index in range(7):
        inside = (times >= index / 2) & (times < (index + 1) / 2)
        mean = frames[..., inside, :].mean(axis=-2)
        np.testing.assert_allclose(window["features"][..., index, :], mean, atol=1e-6)
        assert window["times"][index] == pytest.approx(times[inside].mean())
    assert metadata_of(tmp_path / "window" / "first.flac.npz")["pool_seconds"] == 0.5


@pytest.mark.parametrize("settings", [{}, STACK], ids=["hubert", "data2vec"])
def test_a_run_and_its_hugging_face_folder_give_the_same_features(
    embed: Embed, tmp_path: Path, music: Path, settings: dict[str, object]
) -> None:
    checkpoint = tmp_path / "encoder"
    checkpoint.mkdir()
    encoder = small_encoder(**settings)
    save_encoder(encoder, checkpoint)
    card = CardFacts(name="tiny", paradigm="none", trained_on=datetime.date(2025, 1, 1))
    format = "data2vec" if settings else "hubert"
    export_encoder(encoder.eval(), tmp_path / "hf", format=format, card=card)
    options = ("--layers", "all", "--window-seconds", 1)
    for model in (checkpoint, tmp_path / "hf"):
        done = embed(model, music, "--out", tmp_path / "out" / model.name, *options)
        assert done.status == 0, done.err
    for name in NAMES:
        ours, theirs = (
            np.load(tmp_path / "out" / model / "music" / f"{name}.npz")
            for model in ("encoder", "hf")
        )
        np.testing.assert_allclose(theirs["features"], ours["features"], atol=1e-4)


def test_without_a_run_to_tell_windows_are_of_30_seconds(
    embed: Embed, run: Path, music: Path, tmp_path: Path
) -> None:
    lone = (run / "checkpoints" / "step-00000020").rename(tmp_path / "lone")
    done = embed(lone, music / "first.flac", "--out", tmp_path / "out")
    assert done.status == 0 and "windows of 30 s, each 6 s into" in done.out
    # 3.3 s fit into one: the model's features, to the last bit.
    with torch.inference_mode():
        states = load_encoder(lone)(torch.from_numpy(heard(music / "first.flac"))[None])
    written = np.load(tmp_path / "out" / "first.flac.npz")["features"]
    assert np.array_equal(written, states.last[0].numpy())


def test_stereo_at_another_rate_is_averaged_and_resampled_without_seams(
    embed: Embed, run: Path, tmp_path: Path
) -> None:
    left, right = (tune(14, seed=seed, rate=44_100) for seed in (1, 2))
    song = write(
        tmp_path / "song.wav", np.stack([left, right], axis=1), rate=44_100, subtype="FLOAT"
    )
    assert len(left) > 2 * BLOCK_FRAMES
    mono = (left + right) / 2
    whole = soxr.resample(mono, 44_100, RATE, quality="VHQ")
    assert len(whole) == 14 * RATE
    np.testing.assert_allclose(heard(song), whole, atol=1e-6)
    assert embed(run, song, "--out", tmp_path / "out").status == 0
    encoder = encoder_of(run)
    wanted = embed_waveform(lambda w: encoder(w).hidden_states, whole, ONE_SECOND, [2])[:, 0]
    written = np.load(tmp_path / "out" / "song.wav.npz")
    np.testing.assert_allclose(written["features"], wanted, atol=1e-4)
    assert written["times"][-1] == pytest.approx(14, abs=0.02)


def test_what_is_there_is_not_made_again_unless_it_is_asked_for(
    embed: Embed, run: Path, music: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert embed(run, music, "--out", out).status == 0
    contents = {name: (out / name).read_bytes() for name in files_in(out)}
    (out / "music" / "first.flac.npz").unlink()
    (out / "music" / "third.mp3.npz.part").write_bytes(b"what a kill leaves")
    kept = {name: (out / name).stat().st_mtime_ns for name in files_in(out)}
    again = embed(run, music, "--out", out)
    assert again.status == 0 and "1 file embedded" in again.out and "3 were there" in again.out
    for name, time in kept.items():
        assert (out / name).stat().st_mtime_ns == time, "a finished file was touched"
    third = embed(run, music, "--out", out, "--overwrite")
    assert third.status == 0 and "4 files embedded" in third.out
    # And the same command gives the same bytes, on another day too.
    with zipfile.ZipFile(out / "music" / "first.flac.npz") as archive:
        assert {entry.date_time[0] for entry in archive.infolist()} == {1980}
    assert {name: (out / name).read_bytes() for name in files_in(out)} == contents


def test_an_interrupted_run_keeps_what_was_finished_and_leaves_no_scraps(
    embed: Embed, run: Path, music: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real = tmp_path / "out", command.mono_blocks

    def interrupted(source: Any, rate: int, **how: bool) -> Iterator[Samples]:
        if source.name.endswith("first.flac"):
            os.kill(os.getpid(), signal.SIGTERM)
        return real(source, rate, **how)

    monkeypatch.setattr(command, "mono_blocks", interrupted)
    done = embed(run, music, "--out", out)
    assert done.status == 75 and "run the same command again" in done.err
    assert files_in(out) == [f"music/{name}.npz" for name in NAMES[:2]]
    monkeypatch.setattr(command, "mono_blocks", real)
    assert embed(run, music, "--out", out).status == 0
    assert files_in(out) == [f"music/{name}.npz" for name in NAMES]


def test_features_of_other_settings_are_not_taken_for_finished_ones(
    embed: Embed, run: Path, music: Path, tmp_path: Path
) -> None:
    out, song = tmp_path / "out", music / "first.flac"
    assert embed(run, song, "--out", out).status == 0
    before = (out / "first.flac.npz").read_bytes()
    other = embed(run, song, "--out", out, "--layers", "0")
    assert other.status == 2 and "layers was [2], now [0]" in other.err
    step_10 = embed(run / "checkpoints" / "step-00000010", song, "--out", out)
    assert step_10.status == 2 and "weights_sha256 was" in step_10.err
    assert (out / "first.flac.npz").read_bytes() == before
    namesake = write(tmp_path / "elsewhere" / "first.flac", tune(2))
    another = embed(run, namesake, "--out", out)
    assert another.status == 2 and "of another file" in another.err
    (out / "first.flac.npz").write_bytes(b"a thesis")
    strange = embed(run, song, "--out", out)
    assert strange.status == 2 and "was not written by this command" in strange.err
    assert embed(run, song, "--out", out, "--overwrite").status == 0
    assert (out / "first.flac.npz").read_bytes() == before


def test_what_cannot_be_decoded_is_listed_and_the_rest_is_done(
    embed: Embed, run: Path, music: Path, tmp_path: Path
) -> None:
    flac = (music / "first.flac").read_bytes()
    (music / "cut.flac").write_bytes(flac[: len(flac) // 2])
    flipped = bytearray((write(tmp_path / "long.flac", tune(14, seed=8))).read_bytes())
    flipped[-len(flipped) // 4] ^= 0xFF  # after windows that were already embedded
    (music / "damaged.flac").write_bytes(flipped)
    holed = bytearray(write(tmp_path / "whole.opus", tune(4)).read_bytes())
    holed[len(holed) // 2 : len(holed) // 2 + 50] = bytes(50)
    (music / "holed.opus").write_bytes(holed)
    mp3 = (music / "third.mp3").read_bytes()
    (music / "cut.mp3").write_bytes(mp3[: len(mp3) // 2])
    (music / "empty.mp3").write_bytes(b"")
    (music / "letter.wav").write_bytes(b"Dear all, this is no sound.")
    write(music / "click.wav", tune(0.01))
    holes = tune(2)
    holes[30_000] = np.nan
    write(music / "holes.wav", holes, subtype="FLOAT")
    for batch in (1, 64):  # 64: windows of the damaged one are still waiting when it is given up
        out = tmp_path / str(batch)
        done = embed(run, music, "--out", out, "--batch", batch)
        assert done.status == 3
        assert done.err.count("Traceback") == 0
        assert "8 of 12 files could not be embedded" in done.err
        for line in (
            "music/click.wav: too_short, one frame needs 400 samples at 24000 Hz",
            "music/cut.flac: truncated",
            "music/cut.mp3: truncated",
            "music/holed.opus: corrupt, the checksum of the Ogg page at byte",
            "music/damaged.flac: corrupt",
            "music/empty.mp3: empty, 0 bytes",
            "music/holes.wav: nonfinite, NaN or infinity after frame 0",
            "music/letter.wav: not_audio",
        ):
            assert f"    {line}" in done.err
        assert files_in(out) == [f"music/{name}.npz" for name in NAMES]
        for name in NAMES:
            wanted = expected(run, music / name, [2], ONE_SECOND)[:, 0]
            written = np.load(out / "music" / f"{name}.npz")["features"]
            np.testing.assert_allclose(written, wanted, atol=1e-5)


def test_a_stated_md5_may_be_left_unread(embed: Embed, run: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "music" / "stated.flac", tune(2.0))
    changed = bytearray(path.read_bytes())
    changed[30] ^= 1
    path.write_bytes(changed)
    words = (run, tmp_path / "music", "--out", tmp_path / "features")
    assert embed(*words).status == 3
    done = embed(*words, "--skip-flac-md5")
    assert done.status == 0 and (tmp_path / "features" / "music" / "stated.flac.npz").is_file()


@pytest.mark.parametrize("length", [248, 254])
def test_a_name_that_leaves_no_room_for_another_ending_costs_that_file_alone(
    embed: Embed, run: Path, music: Path, tmp_path: Path, length: int
) -> None:
    name = "x" * (length - 4) + ".wav"
    write(music / name, tune(1))
    done = embed(run, music, "--out", tmp_path / "out")
    assert done.status == 3 and f"{name}: unwritable, File name too long" in done.err
    assert files_in(tmp_path / "out") == [f"music/{name}.npz" for name in NAMES]


def test_features_that_float16_cannot_hold_are_not_written(
    embed: Embed, run: Path, music: Path, tmp_path: Path
) -> None:
    encoder = encoder_of(run)
    encoder.layers[-1].ffn_norm.weight.data.mul_(1e5)
    save_encoder(encoder, run / "checkpoints" / "step-00000020")
    done = embed(run, music, "--out", tmp_path / "out", "--dtype", "float16")
    assert done.status == 3 and "--dtype float32 holds larger ones" in done.err
    assert not files_in(tmp_path / "out")
    assert embed(run, music, "--out", tmp_path / "out").status == 0


def test_a_whole_file_is_heard_whatever_it_is_called_and_other_files_are_left_alone(
    embed: Embed, run: Path, music: Path, tmp_path: Path
) -> None:
    (music / "third.mp3").rename(music / "third.wav")  # known by its content
    (music / "cover.jpg").write_bytes(b"\xff\xd8")
    write(music / "._hidden.flac", tune(1))
    out = music / "features"  # inside of what is read
    write(out / "sonified.wav", tune(1))
    done = embed(run, music, "--out", out)
    assert done.status == 0 and "4 files embedded" in done.out
    names = (*NAMES[:3], "third.wav")
    assert files_in(out) == [*(f"music/{name}.npz" for name in names), "sonified.wav"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--layers", "3"), "0 (the first layer's input) to 2"),
        (("--layers", "-1"), "0 (the first layer's input) to 2"),
        (("--layers", "0,0"), "none twice"),
        (("--layers", "0,,1"), "separated by commas"),
        (("--layers", "top"), "--layers must be last, all, mean, or numbers"),
        (("--window-seconds", "0.01"), "must hold one frame, 400 samples, but has 240"),
        (("--window-seconds", "1", "--overlap-seconds", "1"), "may overlap by 0 to 73 of them"),
        (("--overlap-seconds", "-1"), "--overlap-seconds must be a length in seconds"),
        (("--window-seconds", "nan"), "--window-seconds must be a length in seconds"),
        (("--pool-seconds", "2"), "--pool-seconds belongs to --pool window"),
        (("--pool", "window", "--pool-seconds", "0.01"), "must be at least 0.0166667"),
        (("--batch", "0"), "--batch must be at least 1"),
        (("--device", "abacus"), "--device abacus cannot be used here"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(
    embed: Embed, run: Path, music: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    option, *rest = words
    given = (f"{option}={rest[0]}", *rest[1:])  # -1 would be taken for an option
    done = embed(run, music, "--out", tmp_path / "out", *given)
    assert done.status == 2 and message in done.err
    assert "Traceback" not in done.err and not (tmp_path / "out").exists()


def test_missing_models_and_music_are_told(embed: Embed, run: Path, tmp_path: Path) -> None:
    (tmp_path / "silence").mkdir()
    for words, status, message in (
        ((tmp_path / "nowhere", run), 3, "there must be an audio file in"),
        ((run, tmp_path / "nowhere"), 2, "no such file or folder"),
        ((run, tmp_path / "silence"), 3, "there must be an audio file in"),
    ):
        done = embed(*words, "--out", tmp_path / "out")
        assert done.status == status and message in done.err
    song = write(tmp_path / "song.wav", tune(1))
    done = embed(tmp_path / "silence", song, "--out", tmp_path / "out")
    assert done.status == 2 and "no model at" in done.err
    done = embed(run, song, "--out", song)
    assert done.status == 2 and "--out has to be a folder" in done.err
