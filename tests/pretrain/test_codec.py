"""EnCodec as tokeniser: encodec's own codes, from any file that holds them, at any length."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from codec_weights import clips, fitted
from encodec import EncodecModel as TheirModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import EncodecConfig
from transformers import EncodecModel as TransformersModel

from etude.pretrain.codec import (
    OFFICIAL_FILE,
    Codec,
    CodecStream,
    codec_from_tensors,
    load_codec,
    transformers_name,
    untrained_model,
)
from etude.pretrain.errors import ConfigError

HOP = 320
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def theirs() -> TheirModel:
    """encodec itself, with the same weights."""
    model = untrained_model(seed=1)
    model.load_state_dict(fitted()[0])
    model.set_target_bandwidth(6.0)
    return model.eval()


@pytest.fixture(scope="module")
def track(codec: Codec) -> tuple[Tensor, Tensor]:
    """Two tracks of 5 s, (2, T), and their codes."""
    waveform = clips(2, seconds=5, first=50)
    return waveform, codec.encode(waveform)


def agreement(codes: Tensor, others: Tensor) -> float:
    assert codes.shape == others.shape
    return float((codes == others).float().mean())


def test_a_second_is_75_frames_of_eight_codes(codec: Codec) -> None:
    assert (codec.name, codec.sample_rate, codec.hop_samples) == ("encodec_24khz", 24_000, HOP)
    assert (codec.frame_rate, codec.num_codebooks, codec.codebook_size) == (75.0, 8, 1024)
    codes = codec.encode(clips(1, seconds=1))
    assert codes.shape == (1, 75, 8) and codes.dtype == torch.int64
    assert codec.encode(torch.zeros(3, HOP - 1)).shape == (3, 0, 8)


@pytest.mark.parametrize("samples", [48_000, 48_001, 47_999, 7 * HOP, 5 * HOP, HOP])
def test_whole_frames_have_the_codes_that_encodec_gives(
    codec: Codec, theirs: TheirModel, samples: int
) -> None:
    waveform = clips(2, seconds=3, first=20)[:, 12_000 : 12_000 + samples]
    with torch.no_grad():
        ((codes_BKF, scale),) = theirs.encode(waveform[:, None])
    assert scale is None
    whole = samples // HOP
    assert torch.equal(codec.encode(waveform), codes_BKF.transpose(1, 2)[:, :whole])


def test_a_codec_is_no_part_of_what_is_trained_or_saved(codec: Codec) -> None:
    objective = nn.ModuleDict({"codec": codec, "head": nn.Linear(2, 2)})
    assert len(list(codec.parameters())) == 0
    assert set(objective.state_dict()) == {"head.weight", "head.bias"}
    assert sum(buffer.numel() for buffer in codec.buffers()) > 7_000_000


def test_codes_do_not_depend_on_the_precision_of_the_model_around(
    codec: Codec, track: tuple[Tensor, Tensor]
) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            codes = codec.encode(track[0][:, :48_000])
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(codes, codec.encode(track[0][:, :48_000]))


def test_a_batch_is_encoded_in_one_pass_that_keeps_nothing_for_gradients(codec: Codec) -> None:
    """As an objective does it for `source: online`."""
    waveform = clips(3, seconds=1).requires_grad_()
    passes: list[int] = []
    handle = codec.steps[0].register_forward_hook(
        lambda step, given, made: passes.append(len(made))
    )
    try:
        embedding = codec.embed(waveform)
        codes = codec.encode(waveform)
    finally:
        handle.remove()
    assert passes == [3, 3] and not embedding.requires_grad
    assert embedding.dtype == torch.float32
    alone = torch.cat([codec.encode(row[None]) for row in waveform.detach()])
    assert agreement(codes, alone) >= 0.999


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_gives_the_codes_of_the_cpu(weights: Path, track: tuple[Tensor, Tensor]) -> None:
    on_gpu = load_codec(weights).cuda()
    assert agreement(on_gpu.encode(track[0].cuda()).cpu(), track[1]) > 0.99


def test_loading_consumes_no_random_numbers(weights: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    load_codec(weights)
    assert torch.equal(torch.rand(4), expected)


# --- layouts of the weights file


@pytest.fixture(scope="module")
def transformers_model() -> TransformersModel:
    """transformers' model with the same weights, through the inverse of what load_codec does."""
    model = TransformersModel(EncodecConfig()).eval()
    mine = {
        transformers_name(name): tensor
        for name, tensor in fitted()[0].items()
        if name.startswith("encoder.") or name.endswith("._codebook.embed")
    }
    missing, unknown = model.load_state_dict(mine, strict=False)
    assert not unknown
    assert all(
        name.startswith("decoder.") or name.endswith(("inited", "cluster_size", "embed_avg"))
        for name in missing
    )
    return model


def test_transformers_gives_the_same_codes(
    transformers_model: TransformersModel, track: tuple[Tensor, Tensor]
) -> None:
    with torch.no_grad():
        output = transformers_model.encode(track[0][:, None], bandwidth=6.0)
    assert torch.equal(output.audio_codes[0].transpose(1, 2), track[1])


def test_a_folder_of_transformers_is_the_same_codec(
    transformers_model: TransformersModel,
    codec: Codec,
    track: tuple[Tensor, Tensor],
    tmp_path: Path,
) -> None:
    transformers_model.save_pretrained(tmp_path)
    loaded = load_codec(tmp_path)
    assert loaded.weights_sha256 == codec.weights_sha256
    assert torch.equal(loaded.encode(track[0]), track[1])

    tensors = load_file(tmp_path / "model.safetensors")
    newer = [name for name in tensors if "parametrizations" in name]
    assert newer  # the file has the newer names; facebook/encodec_24khz has the older ones
    older = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in tensors.items()
    }
    save_file(older, tmp_path / "older.safetensors")
    loaded = load_codec(tmp_path / "older.safetensors")
    assert loaded.weights_sha256 == codec.weights_sha256
    assert torch.equal(loaded.encode(track[0]), track[1])


def test_the_hash_is_that_of_the_codes_and_of_nothing_else(codec: Codec) -> None:
    state = dict(fitted()[0])
    unused = {
        name: tensor + 1
        for name, tensor in state.items()
        if name.startswith(("decoder.", "quantizer.vq.layers.8."))
    }
    assert len(unused) > 60
    assert codec_from_tensors(state | unused).weights_sha256 == codec.weights_sha256
    for name in ("encoder.model.0.conv.conv.bias", "quantizer.vq.layers.7._codebook.embed"):
        other = codec_from_tensors(state | {name: state[name] + 1e-3})
        assert other.weights_sha256 != codec.weights_sha256


# --- what is refused


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda state: {key: value for key, value in state.items() if key != name}


def replaced(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda state: state | {name: change(state[name])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            without("encoder.model.13.lstm.bias_hh_l1"),
            r"must hold the 70 tensors .* but lacks 1: encoder.model.13.lstm.bias_hh_l1",
        ),
        (lambda state: {"weight": torch.zeros(1)}, "lacks 70: .* and 67 more"),
        (
            replaced("encoder.model.0.conv.conv.weight_v", lambda tensor: tensor.repeat(1, 2, 1)),
            r"weight_v \(32, 2, 7\) instead of \(32, 1, 7\)\. Other EnCodec models",
        ),
        (
            replaced("quantizer.vq.layers.2._codebook.embed", torch.zeros_like),
            r"all codes of quantizer.vq.layers.2._codebook.embed are zero",
        ),
        (
            replaced("encoder.model.3.conv.conv.bias", lambda tensor: tensor / 0),
            r"encoder.model.3.conv.conv.bias has values that are not finite",
        ),
    ],
)
def test_tensors_that_are_no_trained_encodec_are_refused(
    change: Callable[[Tensors], Tensors], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        codec_from_tensors(change(dict(fitted()[0])), source="codec.th")


def test_a_freshly_built_transformers_model_is_refused(tmp_path: Path) -> None:
    TransformersModel(EncodecConfig()).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="only initialised: all labels would be 0"):
        load_codec(tmp_path)


def test_a_missing_file_says_where_the_official_one_is(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "codec.th"):
        with pytest.raises(ConfigError, match=r"no file .*https://dl\.fbaipublicfiles\.com/.*\.th"):
            load_codec(path)


def test_a_damaged_file_of_the_official_name_is_refused(weights: Path, tmp_path: Path) -> None:
    named = tmp_path / OFFICIAL_FILE
    named.symlink_to(weights)
    with pytest.raises(ConfigError, match="begins with d7cc33bc, but this one's is"):
        load_codec(named)


class Bomb:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch exploded",)


@pytest.mark.parametrize("name", ["codec.th", "codec.safetensors"])
@pytest.mark.parametrize(
    "content",
    [b"", b"not weights at all", pickle.dumps({"a": Bomb()}, protocol=2)],
    ids=["empty", "text", "pickle"],
)
def test_a_file_that_is_something_else_is_refused_unopened(
    name: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content)
    with pytest.raises(ConfigError, match=name):
        load_codec(Path(name))
    torch.save({"encoder": Bomb()}, tmp_path / "bomb.th")
    with pytest.raises(ConfigError, match=r"bomb\.th must be a state dict"):
        load_codec(tmp_path / "bomb.th")
    torch.save([1, 2], tmp_path / "list.th")
    with pytest.raises(ConfigError, match="holds an object of type list"):
        load_codec(tmp_path / "list.th")
    assert not Path("exploded").exists()


# --- streaming


@pytest.mark.parametrize("frames", [7, 50, 375])
def test_chunks_give_the_codes_of_the_whole_track(
    codec: Codec, track: tuple[Tensor, Tensor], frames: int
) -> None:
    waveform, whole = track
    stream = CodecStream(codec, lanes=2)
    codes = torch.cat([stream.encode(part) for part in waveform.split(frames * HOP, dim=1)], dim=1)
    # The sums are the same, but how a CPU adds them up may depend on the chunk's length.
    assert agreement(codes, whole) >= 0.999


def test_a_lane_begins_a_track_while_others_go_on(
    codec: Codec, track: tuple[Tensor, Tensor]
) -> None:
    (first, second), whole = track[0], track[1]
    chunk = 60 * HOP
    stream = CodecStream(codec, lanes=2)
    # Lane 0: the whole first track. Lane 1: 90 frames of it, then the second track.
    short = 90 * HOP
    queue = torch.cat([first[:short], torch.zeros(2 * chunk - short), second])
    codes = []
    for number in range(6):
        if number == 2:
            stream.restart(1)
        part = slice(number * chunk, (number + 1) * chunk)
        codes.append(stream.encode(torch.stack([first[part], queue[part]])))
    joined = torch.cat(codes, dim=1)
    assert agreement(joined[0], whole[0, :360]) >= 0.999
    # The zeros after the short track have not changed it, nor has it changed what followed.
    assert agreement(joined[1, :90], whole[0, :90]) >= 0.999
    assert agreement(joined[1, 120:], whole[1, :240]) >= 0.999


def test_what_a_stream_keeps_does_not_grow(codec: Codec, track: tuple[Tensor, Tensor]) -> None:
    def kept(stream: CodecStream) -> int:
        state = stream._lanes.memory.values()
        return sum(part.untyped_storage().nbytes() for parts in state for part in parts)

    sizes = []
    for frames in (20, 100):
        stream = CodecStream(codec, lanes=2)
        for part in track[0][:, : 200 * HOP].split(frames * HOP, dim=1):
            stream.encode(part)
            sizes.append(kept(stream))
    assert len(set(sizes)) == 1 and sizes[0] < 100_000


def test_chunks_that_cannot_be_right_are_refused(codec: Codec) -> None:
    stream = CodecStream(codec, lanes=2)
    with pytest.raises(ValueError, match=r"must be \(2, a multiple of 320\), but is \(2, 3201\)"):
        stream.encode(torch.zeros(2, 3201))
    with pytest.raises(ValueError, match=r"but is \(1, 3200\)"):
        stream.encode(torch.zeros(1, 3200))
    with pytest.raises(ValueError, match="must have at least 7 frames, but has 6"):
        stream.encode(torch.zeros(2, 6 * HOP))
    stream.encode(torch.zeros(2, 7 * HOP))
    assert stream.encode(torch.zeros(2, HOP)).shape == (2, 1, 8)


# --- what a frame depends on


def test_no_code_depends_on_later_audio(codec: Codec, track: tuple[Tensor, Tensor]) -> None:
    changed = track[0].clone()
    changed[:, 100 * HOP :] = changed[:, 100 * HOP :].flip(1)
    codes = codec.encode(changed)
    assert torch.equal(codes[:, :100], track[1][:, :100])
    assert agreement(codes[:, 100:], track[1][:, 100:]) < 0.5


def test_a_crop_has_the_codes_of_its_track_away_from_its_start(
    codec: Codec, track: tuple[Tensor, Tensor]
) -> None:
    waveform, whole = track
    same = torch.cat(
        [
            codec.encode(waveform[:, start * HOP : (start + 130) * HOP])
            == whole[:, start : start + 130]
            for start in (60, 115, 177, 240)
        ]
    ).float()
    # The crop's first frames see their own mirror image instead of what was before, and the LSTM
    # has to settle.
    assert float(same[:, :5].mean()) < 0.5
    assert float(same[:, 20:50].mean()) > 0.95
    assert float(same[:, 50:].mean()) > 0.99
