"""What a plan says, it says from numbers that are measured or stated, and says which."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from engine_parts import lines, run
from saved_bytes import classes_of
from training_parts import ROOT, SMALL

from etude.data.shards import Corpus
from etude.pretrain.config import Config
from etude.pretrain.config_file import load_config
from etude.pretrain.flops import crop_flops
from etude.pretrain.memory import Device, count_parameters
from etude.pretrain.peak import measure_peak
from etude.pretrain.planning import (
    RANKS,
    Speed,
    describe_plan,
    describe_time,
    find_speed,
    predict_update,
)
from etude.pretrain.run_folder import RunFolder

MERT = ROOT / "configs" / "mert_v1_95m.yaml"
GPU = Device("cuda", 80e9, "a test")


def flops_of(config: Config) -> float:
    return crop_flops(
        config.model, config.objective, samples=config.crop_samples, classes=classes_of(config)
    ).total


def folder_with(path: Path, *metrics: dict[str, float]) -> RunFolder:
    path.mkdir(parents=True, exist_ok=True)
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    return RunFolder(path)


def plan(config: Config, folder: RunFolder) -> list[str]:
    return list(describe_plan(config, classes_of(config), GPU, folder))


def rows(lines: list[str]) -> dict[int, list[str]]:
    found = (re.split(r"\s{2,}", line.strip()) for line in lines)
    return {int(cells[0]): cells[1:] for cells in found if cells[0].isdigit()}


def test_nothing_measured_and_nothing_stated_is_unknown(tmp_path: Path) -> None:
    config, folder = load_config(MERT), RunFolder(tmp_path / "none")
    assert find_speed(config, folder, flops_of(config)) is None
    assert describe_time(config, folder, 1.0, ranks=1).startswith("unknown")
    table = rows(plan(config, folder))
    assert list(table) == list(RANKS)
    # Memory is estimated all the same.
    assert all(cells[-6:] == ["unknown"] * 6 and float(cells[1]) > 1 for cells in table.values())


def test_a_stated_speed_is_told_as_stated(tmp_path: Path) -> None:
    config, folder = load_config(MERT, ["perf.assumed_tflops=300.0"]), RunFolder(tmp_path / "none")
    speed = find_speed(config, folder, flops_of(config))
    assert speed is not None and "stated and not measured" in speed.origin
    assert speed.crops_per_second == pytest.approx(300e12 / flops_of(config))
    said = "\n".join(plan(config, folder))
    assert "stated and not measured" in said and "measured in" not in said
    assert "(stated: perf.*)" in said and "estimates" in said and "(counted)" in said


def test_a_measured_speed_comes_before_a_stated_one(tmp_path: Path) -> None:
    config = load_config(MERT, ["perf.assumed_tflops=300.0"])
    measured = [
        {"step": 1, "perf/crops_per_second": 10.0, "perf/ranks": 2.0},
        {"step": 2, "valid/loss": 1.0},
        {"step": 3, "perf/crops_per_second": 14.0, "perf/ranks": 2.0},
        {"step": 4, "perf/crops_per_second": 99.0, "perf/ranks": 2.0},
        {"step": 2, "probe/failed": 0.0},  # of a probe: when it has ended
    ]
    folder = folder_with(tmp_path / "run", *measured)
    speed = find_speed(config, folder, flops_of(config))
    assert speed is not None and speed.crops_per_second == 7.0
    assert speed.origin.startswith(f"measured in {folder.path} on 2 ranks")
    left = (config.train.max_steps - 4) * config.train.global_batch / 28.0 / 3600
    assert describe_time(config, folder, 1.0, ranks=4).startswith(
        f"{left:,.2f} h at the 28.0 crops"
    )


def test_a_run_from_before_ranks_were_logged_is_not_guessed_at(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "run", {"step": 1, "perf/crops_per_second": 10.0})
    assert find_speed(load_config(MERT), folder, 1.0) is None


def test_an_update_lies_between_a_hidden_and_an_exposed_reduction() -> None:
    words = ["perf.link_gbytes_per_second=1.0", "perf.network_gbytes_per_second=0.1"]
    config = load_config(MERT, [*words, "perf.gpus_per_node=2"])

    def update(ranks: int, micro_batches: int = 1, crops_per_second: float = 100.0):
        return predict_update(
            config,
            Speed(crops_per_second, "a test"),
            trained=250_000_000,
            ranks=ranks,
            micro_batches=micro_batches,
        )

    alone = update(1)
    assert (alone.compute, alone.reduce, alone.hidden) == (10.24, 0.0, 10.24)
    pair = update(2)
    assert pair.reduce == pytest.approx(1.0)  # 2 (2 - 1) / 2 times 10^9 bytes at 10^9 a second
    assert (pair.hidden, pair.exposed) == (5.12, 6.12)
    # Only the last micro-batch's backward, 2/3 of its time, can hide anything.
    assert update(2, micro_batches=8).hidden == pytest.approx(5.12 + 1.0 - 5.12 / 8 * 2 / 3)
    # Beyond a node the network carries it.
    assert update(4).reduce == pytest.approx(1.5 * 10.0)


def test_every_row_is_the_arithmetic_of_its_ranks(tmp_path: Path) -> None:
    config = load_config(MERT, ["perf.assumed_tflops=300.0", "train.micro_batch=16"])
    table = rows(plan(config, RunFolder(tmp_path / "none")))
    speed = find_speed(config, RunFolder(tmp_path / "none"), flops_of(config))
    assert speed is not None
    for ranks in (1, 2, 4, 8, 16, 32, 64):
        cells = table[ranks]
        assert cells[0] == f"16 x {64 // ranks}"
        update = predict_update(
            config,
            speed,
            trained=count_parameters(config, classes_of(config)).trained,
            ranks=ranks,
            micro_batches=64 // ranks,
        )
        assert float(cells[4]) == pytest.approx(update.compute, rel=0.01)
        assert float(cells[6].split(" - ")[0]) == pytest.approx(update.hidden, rel=0.01)
        assert float(cells[6].split(" - ")[-1]) == pytest.approx(update.exposed, rel=0.01)
        hours = update.exposed * config.train.max_steps / 3600
        assert float(cells[7].split(" - ")[-1].replace(",", "")) == pytest.approx(hours, rel=0.01)
    assert table[128] == ["share 8 crops, not a multiple of train.micro_batch"]


def test_a_row_says_what_keeps_it_from_working(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "none")
    table = rows(plan(load_config(MERT, ["train.global_batch=48"]), folder))
    assert table[16][0] == "3 x 1 *"  # no multiple of the mixture's group is left
    assert table[1][0] == "48 x 1"
    assert table[32] == ["do not divide train.global_batch (48)"]
    large = load_config(MERT, ["model.dim=6144", "model.ffn_dim=24576", "model.layers=24"])
    assert rows(plan(large, folder))[1] == ["a micro-batch does not fit into the device's memory"]


def test_plain_ddp_has_no_stages(tmp_path: Path) -> None:
    table = rows(plan(load_config(MERT, ["train.engine=ddp"]), RunFolder(tmp_path / "none")))
    assert table[8][2:4] == ["-", "-"] and float(table[8][1]) > 1


@pytest.fixture(scope="module")
def recipe(small_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planning")
    values = {
        "run": {"dir": str(folder / "unused")},
        "data": {"corpus": str(small_corpus.root), "crop_seconds": 1.0, "workers": 0},
        "model": SMALL,
        "objective": {"targets": {"cqt": {"kind": "cqt", "bins": 24, "fmin": 220.0}}},
        "train": {"max_steps": 2, "global_batch": 2, "engine": "ddp"},
        "optim": {"lr": 0.001, "warmup_steps": 2},
        "logging": {"every_steps": 1, "valid_every_steps": 1000, "tensorboard": False},
        "health": {"every_steps": 0},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.usefixtures("process_group")
def test_mfu_is_the_models_flops_over_the_peak_that_is_stated(recipe: Path, tmp_path: Path) -> None:
    run(recipe, tmp_path / "run", "perf.peak_tflops=0.5")
    flops = flops_of(load_config(recipe))
    for line in lines(tmp_path / "run"):
        used = line["perf/crops_per_second"] * flops / 0.5e12
        assert line["perf/mfu"] == pytest.approx(used, rel=1e-9)
        assert line["perf/ranks"] == 1.0
    measured = find_speed(load_config(recipe), RunFolder(tmp_path / "run"), flops)
    assert measured is not None and measured.origin.startswith("measured in")


@pytest.mark.usefixtures("process_group")
def test_a_cpu_has_no_peak_unless_one_is_stated(recipe: Path, tmp_path: Path) -> None:
    run(recipe, tmp_path / "run")
    assert all("perf/mfu" not in line for line in lines(tmp_path / "run"))
    # What is known of the machine may change when a run goes on.
    RunFolder(tmp_path / "run").check_config(
        load_config(
            recipe,
            [
                f"run.dir={tmp_path / 'run'}",
                "perf.peak_tflops=0.5",
                "train.profile=true",
            ],
        )
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_the_peak_of_a_gpu_is_measured_and_leaves_random_numbers_alone() -> None:
    gpu = torch.device("cuda", torch.cuda.current_device())
    before = torch.cuda.get_rng_state()
    assert measure_peak(gpu, torch.bfloat16) > 1e12
    assert torch.equal(before, torch.cuda.get_rng_state())
