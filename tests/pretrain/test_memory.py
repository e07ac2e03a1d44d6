"""The estimate of memory beside what the real parts have; and the micro-batch that follows."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from engine_parts import DDP, STAGES, Training
from saved_bytes import batch_of, classes_of, estimate, objective_of, saved_bytes
from training_parts import ROOT, SMALL

from etude.data.shards import Corpus
from etude.pretrain.config import Config
from etude.pretrain.config_file import load_config
from etude.pretrain.errors import ConfigError
from etude.pretrain.inputs import check_inputs, choose_micro_batch
from etude.pretrain.memory import (
    Device,
    Memory,
    count_parameters,
    estimate_memory,
    find_device,
    most_crops,
    stage_of,
)

CONFIGS = [
    *sorted((ROOT / "configs").glob("*.yaml")),
    # But for the one that cannot be built without its file: test_mel_rvq.py counts it.
    *(p for p in (ROOT / "configs/ablations").glob("*.yaml") if p.stem != "quickstart_mel_rvq"),
]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
MERT = ROOT / "configs" / "mert_v1_95m.yaml"


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_parameters_are_counted_to_the_last_one(path: Path) -> None:
    # Two layers are enough to see what a layer has, and a small model is built in no time.
    teachers = [
        f"objective.targets.{name}.top_layers=2"
        for name, target in load_config(path).objective.targets.items()
        if target.kind == "teacher"
    ]
    config = load_config(path, ["model.layers=2", *teachers])
    objective = objective_of(config)
    counted = count_parameters(config, classes_of(config))
    parameters = list(objective.parameters())
    assert counted.trained == sum(p.numel() for p in parameters if p.requires_grad)
    assert counted.kept == sum(p.numel() for p in parameters if not p.requires_grad)


SHORT = ["data.crop_seconds=1.0"]
WHOLE = [
    *("model.dropout=0.1", "model.attention_dropout=0.1", "model.projection_dropout=0.1"),
    *("model.activation_dropout=0.1",),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("quickstart", []),
        ("quickstart", WHOLE),
        ("quickstart", ["model.impl=plain"]),
        ("ablations/quickstart_music2vec", []),
        ("ablations/quickstart_music2vec_views", []),
        ("ablations/quickstart_logmel_frontend", []),
        ("ablations/quickstart_codec", []),
        ("ablations/quickstart_conformer", []),
        ("ablations/quickstart_conformer", WHOLE),
        ("ablations/quickstart_rotary", []),
        ("mert_v1_95m", [*SHORT, "model.layers=1"]),
        ("mert_v1_95m", [*SHORT, "model.layers=1", "model.impl=plain"]),
        (
            "music2vec_v1",
            [*SHORT, "model.layers=1", "objective.targets.teacher.top_layers=1"],
        ),
    ],
)
def test_what_forward_keeps_is_estimated_within_a_fifth(
    name: str, words: list[str], precision: str
) -> None:
    config = load_config(
        ROOT / "configs" / f"{name}.yaml", [*words, f"train.precision={precision}"]
    )
    for crops in (1, 4):
        objective, batch = objective_of(config, crops=crops), batch_of(config, crops=crops)
        counted = saved_bytes(objective, batch, bf16=precision == "bf16").total()
        memory = estimate(config, crops=crops)
        assert memory.copies + memory.activations == pytest.approx(counted, rel=0.2)


@pytest.fixture(scope="module")
def recipe(small_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is large beside its crops."""
    folder = tmp_path_factory.mktemp("memory")
    teacher = {"kind": "teacher", "top_layers": 2}
    values = {
        "run": {"dir": str(folder / "unused")},
        "data": {"corpus": str(small_corpus.root), "crop_seconds": 0.5, "workers": 0},
        "model": {**SMALL, "dim": 128, "ffn_dim": 4096},
        "objective": {"targets": {"teacher": teacher}},
        "train": {"max_steps": 10, "global_batch": 2, "micro_batch": 1},
        "optim": {"lr": 0.001, "warmup_steps": 2},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def bytes_that_live() -> int:
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        # Not isinstance, which wakes modules that warn when they are asked for anything.
        if type(thing) not in (torch.Tensor, torch.nn.Parameter) or thing.device.type != "cpu":
            continue
        if not torch._is_functional_tensor(thing):  # a compiler left it, and it has no memory
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None:
                    storage = tensor.untyped_storage()
                    storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(
    "words",
    [pytest.param(DDP, id="ddp")]
    + [pytest.param(w, id=f"stage {s}") for s, w in enumerate(STAGES)],
)
def test_weights_moments_and_a_teacher_are_what_lives_between_updates(
    recipe: Path, words: tuple[str, ...]
) -> None:
    before = bytes_that_live()
    training = Training(recipe, *words, "train.precision=fp32")
    training.train(range(2))
    config = load_config(recipe, words)
    memory = estimate_memory(
        config,
        count_parameters(config, {}),
        micro_batch=1,
        ranks=1,
        stage=stage_of(config),
        device="cpu",
    )
    lasting = memory.weights + memory.optimizer + memory.teacher
    # Gradients are dropped after an update, or kept as zeros.
    living = bytes_that_live() - before
    assert lasting * 0.95 < living < (lasting + memory.gradients) * 1.05


def of(config: Config, **changes: Any) -> Memory:
    given = {"micro_batch": 1, "ranks": 8, "stage": 0, "device": "cuda", **changes}
    return estimate_memory(config, count_parameters(config, classes_of(config)), **given)


def test_zero_divides_what_it_should() -> None:
    config = load_config(MERT, ["train.cuda_graph=false"])
    whole = 4.0 * count_parameters(config, classes_of(config)).trained
    bucket = 4.0 * 25_000_000
    stages = [of(config, stage=stage) for stage in (0, 1, 2)]
    assert [m.optimizer for m in stages] == [2 * whole, 2 * whole / 8, 2 * whole / 8]
    assert [m.weights for m in stages] == [whole, whole * 9 / 8, whole * 9 / 8]
    assert [m.gradients for m in stages] == [whole, whole + bucket, whole / 8 + bucket]
    assert of(config, stage=None).gradients == 2 * whole
    assert of(config, stage=None, ranks=1).gradients == whole


def test_a_recorded_step_has_gradients_of_its_own() -> None:
    plain = load_config(MERT, ["train.cuda_graph=false"])
    whole = 4.0 * count_parameters(plain, classes_of(plain)).trained
    recorded = load_config(MERT)
    for stage in (None, 0, 1, 2):
        extra = of(recorded, stage=stage).total - of(plain, stage=stage).total
        assert extra == pytest.approx(whole), stage
    assert of(recorded, device="cpu") == of(plain, device="cpu")
    profiled = load_config(MERT, ["train.cuda_graph=true", "train.profile=true"])
    assert of(profiled) == of(plain)


def test_a_step_is_compiled_and_recorded_on_a_gpu_unless_told_otherwise() -> None:
    def used(*words: str) -> list[tuple[bool, bool]]:
        train = load_config(MERT, list(words)).train
        return [(train.compiles_on(kind), train.records_on(kind)) for kind in ("cuda", "cpu")]

    assert used() == [(True, True), (False, False)]
    assert used("train.compile=true", "train.cuda_graph=true") == [(True, True), (True, False)]
    assert used("train.compile=false", "train.cuda_graph=false") == [(False, False)] * 2
    assert used("train.profile=true") == [(True, False), (False, False)]


def test_memory_grows_with_the_micro_batch_and_not_on_a_gpu_with_attention_dropout() -> None:
    dropping = load_config(MERT)
    keeping = load_config(MERT, ["model.attention_dropout=0.0"])
    sizes = [of(dropping, micro_batch=n).activations for n in (1, 2, 16)]
    assert sizes == [sizes[0], 2 * sizes[0], 16 * sizes[0]]
    assert of(dropping).activations == of(keeping).activations
    assert of(dropping, device="cpu").activations > 1.5 * of(keeping, device="cpu").activations


def device(gigabytes: float, kind: str = "cuda") -> Device:
    return Device(kind, gigabytes * 1e9, "a test")


def chosen(config: Config, gigabytes: float, ranks: int = 1) -> tuple[int, str]:
    return choose_micro_batch(config, classes_of(config), ranks=ranks, device=device(gigabytes))


NO_DROPOUT = [f"model.{name}=0" for name in ("dropout", "attention_dropout", "projection_dropout")]


NO_MIXTURE = "objective.mixture.prob=0.0"


@pytest.mark.parametrize(
    ("recipe", "words", "crops", "gigabytes"),
    [
        ("mert_v1_95m", [NO_MIXTURE, *NO_DROPOUT], 16, 5.16),
        ("mert_v1_95m", [NO_MIXTURE, *NO_DROPOUT], 32, 8.73),
        ("mert_v1_95m", [NO_MIXTURE, *NO_DROPOUT], 64, 15.86),
        ("mert_v1_95m", [NO_MIXTURE, *NO_DROPOUT], 256, 58.53),
        ("mert_v1_95m", [NO_MIXTURE], 64, 16.46),
        ("mert_v1_330m", [NO_MIXTURE, *NO_DROPOUT], 64, 33.48),
        ("music2vec_v1", ["data.crop_seconds=5.0", *NO_DROPOUT], 32, 6.80),
    ],
)
def test_the_estimate_for_a_gpu_is_near_what_torch_had_allocated_on_an_h200(
    recipe: str, words: list[str], crops: int, gigabytes: float
) -> None:
    """Peaks of BENCHMARKS.md; 1 GB of the estimate is for libraries."""
    config = load_config(ROOT / "configs" / f"{recipe}.yaml", words)
    estimated = estimate_memory(
        config,
        count_parameters(config, {"codec": 1024}),
        micro_batch=crops,
        ranks=1,
        stage=None,
        device="cuda",
    )
    assert estimated.total / 1e9 - 1.0 == pytest.approx(gigabytes, rel=0.12)


def test_auto_takes_what_memory_holds_and_says_why() -> None:
    config = load_config(MERT, ["objective.mixture.prob=0.0"])
    taken = [chosen(config, gigabytes, ranks=8) for gigabytes in (6, 12, 40, 80)]
    sizes = [size for size, _ in taken]
    assert sizes == sorted(sizes) and len(set(sizes)) > 2
    for (size, why), gigabytes in zip(taken, (6, 12, 40, 80), strict=True):
        assert 128 % size == 0
        assert of(config, micro_batch=size).total <= device(gigabytes).usable
        assert f"of 90 % of {gigabytes} GB (a test)" in why
        if size < 128:
            assert of(config, micro_batch=2 * size).total > device(gigabytes).usable
            assert f"{2 * size} would need" in why
    assert "all that 8 ranks share out" in chosen(config, 800, ranks=8)[1]


def test_auto_keeps_the_groups_of_a_mixture_whole() -> None:
    config = load_config(MERT, ["objective.mixture.group=16"])
    assert {chosen(config, gigabytes)[0] % 16 for gigabytes in (16, 24, 80)} == {0}
    # One crop would fit, but switch the mixture off.
    with pytest.raises(ConfigError, match=r"16 crops of 5 s \(objective.mixture.group is 16\)"):
        chosen(config, 4)
    assert chosen(load_config(MERT, ["objective.mixture.prob=0.0"]), 4)[0] < 16
    # Where no share of the batch is a multiple, there is no mixture to keep.
    config = load_config(MERT, ["objective.mixture.group=3"])
    assert chosen(config, 80)[0] > 1


def test_a_crop_that_does_not_fit_is_an_error_with_the_numbers() -> None:
    config = load_config(MERT, ["data.crop_seconds=60.0", "objective.mixture.prob=0.0"])
    with pytest.raises(ConfigError) as caught:
        chosen(config, 2)
    message = str(caught.value)
    assert "1 crop of 60 s would take about" in message
    assert "90 % of 2 GB (a test) are 1.8 GB" in message and "ZeRO stage 1" in message


def test_auto_stops_where_tensors_would_outgrow_32_bits() -> None:
    config = load_config(MERT, ["objective.mixture.prob=0.0"])
    most, why = most_crops(config, "cuda")
    assert most * 23_999 * 512 < 2**31 <= (most + 1) * 23_999 * 512
    size, said = chosen(config, 10_000)
    assert size == 128 and why in said


def test_the_same_command_chooses_the_same_whatever_else_runs(small_corpus: Corpus) -> None:
    words = [f"data.corpus={small_corpus.root}", "objective.targets={cqt: {kind: cqt, bins: 24}}"]
    words += ["model.sample_rate=24000", "train.global_batch=64"]
    config = load_config(QUICKSTART, words)
    machine = find_device(config, "cpu", ranks_here=1)
    shared = find_device(config, "cpu", ranks_here=2)
    assert shared.total <= machine.total / 2
    assert machine.usable == pytest.approx(0.7 * machine.total)
    inputs = check_inputs(config, rank=0, ranks=1, device="cpu")
    assert inputs.share.micro_batch == 8 and "on a CPU, larger ones are no faster" in inputs.choice
    stated = load_config(QUICKSTART, [*words, "perf.device_gbytes=2.0"])
    assert find_device(stated, "cpu", ranks_here=2).total == 2e9
    given = load_config(QUICKSTART, [*words, "train.micro_batch=32"])
    inputs = check_inputs(given, rank=0, ranks=1, device="cpu")
    assert inputs.share.micro_batch == 32 and inputs.choice == "stated: train.micro_batch"
