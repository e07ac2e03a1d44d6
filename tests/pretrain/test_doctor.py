"""The checks of ``launch/doctor.py``, each on what it would have to find."""

import os
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from run_parts import PYTHON, Run, run_stages, together
from torch import nn
from torch.distributed import HashStore
from training_parts import SMALL

from etude.data.shards import Corpus
from etude.pretrain.config import TrainConfig
from etude.pretrain.config_file import load_config
from etude.pretrain.distributed import World
from etude.pretrain.doctor.collectives import rows_of_times, slowest
from etude.pretrain.doctor.devices import check_product, device_rows, driver_version, runs_on
from etude.pretrain.doctor.disk import (
    check_inodes,
    check_writing,
    checkpoint_bytes,
    judge_space,
    judge_speed,
    shown,
)
from etude.pretrain.doctor.meeting import Meeting, MissingRanksError
from etude.pretrain.doctor.memory import (
    available_memory,
    batch_bytes,
    judge_memory,
    judge_open_files,
    judge_shared_memory,
    shared_bytes,
)
from etude.pretrain.doctor.mounts import mount_of, nearest_folder, read_mounts
from etude.pretrain.doctor.opening import open_run
from etude.pretrain.doctor.ranks import differences, identity, rows_of_ranks, sharing
from etude.pretrain.doctor.rows import exit_status, failed, merged, ok, unchecked, verdict, warning
from etude.pretrain.doctor.stepping import UpdateTime, judge_data, left_out, waiting_share
from etude.pretrain.doctor.versions import check_versions, own_python, own_requirements

CPU = torch.device("cpu")
HOSTS = {0: "node1", 1: "node1", 2: "node2"}


def test_what_is_installed_here_is_what_is_asked_for() -> None:
    row = check_versions(own_requirements(), own_python())
    assert row.mark == "ok" and f"torch {torch.__version__.partition('+')[0]}" in row.found
    assert "fairseq2n==0.8.1" in own_requirements()


def test_a_wrong_version_is_found() -> None:
    row = check_versions(
        ["numpy>=1", "torch==0.4.1", "no-such-package>=2", 'absent>=1; extra == "dev"'], ">=3.11"
    )
    assert row.mark == "failed"
    assert f"torch {torch.__version__.partition('+')[0]}" in row.found and "==0.4.1" in row.found
    assert "no-such-package is missing" in row.found
    assert "numpy" not in row.found and "absent" not in row.found
    assert "python 3" in check_versions([], "<3").found


@pytest.mark.parametrize(
    ("capability", "archs", "expected"),
    [
        ((8, 0), ["sm_70", "sm_80"], True),
        ((8, 6), ["sm_80"], True),  # later minor version
        ((8, 0), ["sm_86"], False),
        ((7, 0), ["sm_75", "sm_80"], False),
        ((9, 0), ["sm_80"], False),  # another major version
        ((12, 0), ["sm_90", "compute_90"], True),  # compiled by the driver
        ((9, 0), ["sm_90a"], True),
        ((9, 1), ["sm_90a"], False),
        ((10, 3), ["sm_100f"], True),
        ((9, 0), [], False),
    ],
)
def test_a_gpu_needs_a_torch_that_was_built_for_it(
    capability: tuple[int, int], archs: list[str], expected: bool
) -> None:
    assert runs_on(capability, archs) is expected


@pytest.mark.parametrize(
    "text",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.104.05  Release\nGCC 12.2",
    ],
)
def test_the_driver_tells_its_version(tmp_path: Path, text: str) -> None:
    path = tmp_path / "version"
    path.write_text(text)
    assert driver_version(path) == "535.104.05"
    assert driver_version(tmp_path / "none") is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cpu_multiplies_right(dtype: torch.dtype) -> None:
    assert check_product(CPU, dtype).mark == "ok"


def test_a_product_that_is_wrong_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch.Tensor.__matmul__

    def wrong(left: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        product = right(left, other)
        if product.is_floating_point():
            product[3, 5] += 1
        return product

    monkeypatch.setattr(torch.Tensor, "__matmul__", wrong)
    row = check_product(CPU, torch.float32)
    assert row.mark == "failed" and "1 of 65536 numbers" in row.found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_of_this_machine_is_fit_to_train() -> None:
    rows = device_rows(0, alone=True, bf16=True)
    assert {row.mark for row in rows} <= {"ok", "warning"}
    assert "driver" in rows[0].found and "NCCL" in rows[0].found
    assert device_rows(torch.cuda.device_count(), alone=False, bf16=True)[0].mark == "failed"


def test_the_innermost_mount_holds_a_path() -> None:
    mounts = read_mounts(
        "/dev/vda / ext4 rw 0 0\nserver:/home /home nfs4 rw 0 0\n"
        "s3fs /home/my\\040data fuse.s3fs rw 0 0\ntmpfs /home/x/scratch tmpfs rw 0 0\n"
    )
    assert mount_of(Path("/var/run1"), mounts).kind == "ext4"
    assert mount_of(Path("/homes"), mounts).kind == "ext4"
    assert mount_of(Path("/home/x"), mounts).kind == "nfs4"
    assert mount_of(Path("/home/x/scratch/a"), mounts).kind == "tmpfs"
    assert mount_of(Path("/home/my data/a"), mounts).kind == "fuse.s3fs"
    network = {mount.kind for mount in mounts if mount.is_network}
    assert network == {"nfs4", "fuse.s3fs"}


def test_a_run_folder_that_is_not_there_yet_is_judged_by_the_one_above(tmp_path: Path) -> None:
    assert nearest_folder(tmp_path / "runs" / "a") == tmp_path.resolve()
    assert check_writing(tmp_path / "runs" / "a", each=None).mark == "ok"
    assert check_inodes(tmp_path / "runs").check == "run.dir files"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_takes_no_files_fails(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert check_writing(tmp_path, each=None).mark == "failed"


def test_others_see_a_file_only_for_a_while(tmp_path: Path) -> None:
    with shown(tmp_path / "run") as path:
        assert path is not None and path.exists()
    assert list(tmp_path.iterdir()) == []


def test_room_is_needed_for_one_checkpoint_more_than_are_kept() -> None:
    judge = partial(judge_space, each=10, keep=2, place="here")
    assert judge(29, there=0).mark == "failed"
    assert judge(30, there=0).mark == "warning"
    assert judge(60, there=0).mark == "ok"
    # Two of them are there already.
    assert judge(9, there=2).mark == "failed"
    assert judge(20, there=2).mark == "ok"


def test_a_disk_on_which_a_checkpoint_takes_minutes_is_told() -> None:
    assert judge_speed(1e8, each=10**9, place="here").mark == "ok"
    assert judge_speed(1e6, each=10**9, place="here").mark == "warning"
    assert judge_speed(1e6, each=None, place="here").mark == "ok"


def test_shared_memory_is_needed_for_what_workers_keep_ready() -> None:
    each = batch_bytes(8, crop_samples=120_000, codes=375 * 8)
    assert each == 8 * (240_000 + 8 * 3000)
    assert shared_bytes(each, workers=0, ranks=8) == 0
    need = shared_bytes(each, workers=4, ranks=8)
    assert need == 8 * 4 * 5 * each
    assert judge_shared_memory(64 << 20, need).mark == "failed"  # a container's default
    assert judge_shared_memory(need, need).mark == "warning"
    assert judge_shared_memory(2 * need, need).mark == "ok"
    assert judge_shared_memory(0, 0).mark == "ok"


def test_every_worker_needs_open_files() -> None:
    assert judge_open_files(1024, 4096, workers=2).mark == "ok"
    row = judge_open_files(1024, 65536, workers=32)
    assert row.mark == "failed" and "ulimit -n" in row.advice
    assert "hard limit" in judge_open_files(1024, 1024, workers=32).advice


def test_memory_is_shared_by_the_ranks_of_a_host() -> None:
    assert judge_memory(10e9, 4e9, ranks=2, where="this host").mark == "ok"
    assert judge_memory(10e9, 4e9, ranks=3, where="this host").mark == "failed"


def test_a_container_has_less_memory_than_its_machine(tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 4000 kB\nMemAvailable: 3000 kB\n")
    assert available_memory(tmp_path) == 3000 * 1024
    (group / "memory.max").write_text("max\n")
    assert available_memory(tmp_path) == 3000 * 1024
    (group / "memory.max").write_text("1000000\n")
    (group / "memory.current").write_text("600000\n")
    (group / "memory.stat").write_text("anon 1\nfile 200000\n")
    assert available_memory(tmp_path) == 600_000


def test_all_ranks_hear_the_same_or_miss_the_same() -> None:
    store = HashStore()
    ranks = [
        Meeting(rank=rank, size=2, local_rank=rank, store=store, timeout=30.0) for rank in (0, 1)
    ]
    heard = together(*(partial(one.tell, "names", f"rank {one.rank}") for one in ranks))
    assert heard == [{0: "rank 0", 1: "rank 1"}] * 2
    three = Meeting(rank=0, size=3, local_rank=0, store=store, timeout=0.1)
    with pytest.raises(MissingRanksError) as caught:
        three.tell("numbers", 1)
    assert caught.value.ranks == [1, 2]
    late = Meeting(rank=1, size=3, local_rank=1, store=store, timeout=0.1)
    with pytest.raises(MissingRanksError) as caught:
        late.tell("numbers", 2)
    assert caught.value.ranks == [1, 2]


def test_the_slowest_rank_is_held_against_the_others() -> None:
    assert slowest({0: 1.0, 1: 3.0}) == (1, 3.0)
    assert slowest({0: 1.0, 1: 1.0, 2: 1.2, 3: 1.0}) == (2, 1.2)
    times = {
        rank: {"right": True, "sums": {"4": 1e-3, "1024": 2e-3}, "work": 0.01} for rank in HOSTS
    }
    assert {row.mark for row in rows_of_times(times, HOSTS)} == {"ok"}
    times[2] = {**times[2], "work": 0.03}
    reduced, arrival = rows_of_times(times, HOSTS)
    assert reduced.mark == "ok" and arrival.mark == "warning"
    assert "rank 2 (node2)" in arrival.found and "3.00 times" in arrival.found
    times[1] = {**times[1], "right": False}
    assert rows_of_times(times, HOSTS)[0].found.startswith("rank 1 (node1): sums")


def test_a_rank_with_another_torch_is_named() -> None:
    versions = {rank: {"torch": "2.9.1", "driver": "550.54"} for rank in HOSTS}
    assert [row.mark for row in differences(versions, HOSTS)] == ["ok"]
    versions[2] = {"torch": "2.9.0", "driver": "535.104"}
    torchs, drivers = differences(versions, HOSTS)
    assert torchs.mark == "failed" and "2.9.0 on rank 2 (node2)" in torchs.found
    assert drivers.mark == "warning"


def test_two_ranks_on_one_gpu_are_named() -> None:
    assert sharing({0: ("a", "GPU-1"), 1: ("a", "GPU-2"), 2: ("b", "GPU-1")}) == []
    assert sharing({0: ("a", None), 1: ("a", None)}) == []
    assert sharing({0: ("a", "GPU-1"), 1: ("a", "GPU-1"), 2: ("b", "GPU-1")}) == [[0, 1]]
    one = identity(0)
    rows = rows_of_ranks({rank: {**one, "gpu": "GPU-1"} for rank in (0, 1)})
    assert [row.check for row in rows] == ["ranks", "ranks alike", "ranks apart"]
    assert exit_status(rows) == 2


def test_a_report_tells_what_ranks_found_alike_once_and_the_rest_by_rank() -> None:
    assert merged({0: [ok("disk", "8 GB")], 1: [ok("disk", "9 GB")]}, HOSTS) == [ok("disk", "8 GB")]
    bad = warning("disk", "0 GB", "make room")
    assert merged({0: [bad], 1: [bad]}, HOSTS) == [bad]
    (row,) = merged({0: [ok("disk", "8 GB")], 1: [], 2: [bad]}, HOSTS)
    assert row == warning("disk", "rank 2 (node2): 0 GB", "make room")


def test_the_verdict_names_what_failed_and_its_status() -> None:
    rows = [ok("a", ""), unchecked("b", ""), warning("c", "", "")]
    assert (verdict(rows), exit_status(rows)) == ("verdict: ready, warnings: c", 0)
    rows += [failed("d", "", "", status=3), failed("e", "", "")]
    assert verdict(rows) == "verdict: not ready. Failed: d, e; warnings: c"
    assert exit_status(rows) == 3


def test_an_update_is_its_micro_batches_the_last_with_the_exchange() -> None:
    time = UpdateTime(accumulate=2.0, last=3.0, loss=1.0, peak_bytes=0)
    assert time.seconds(1) == 3.0 and time.seconds(4) == 9.0


def test_data_that_is_slower_than_training_is_a_bottleneck() -> None:
    judge = partial(judge_data, workers=2, hint=", or sing")
    assert "data keeps up: 4.0 x" in judge(40.0, 10.0).found
    slow = judge(5.0, 10.0)
    assert slow.mark == "warning" and "50% of the time" in slow.found
    assert slow.advice == "raise data.workers (now 2), or sing"
    # A run that is quicker than what was timed needs more than that, which is said either way.
    quicker = partial(judge, faster=["compile", "cuda_graph"])
    for found in (quicker(40.0, 10.0).found, quicker(5.0, 10.0).found):
        assert "per rank, and more with train.compile and train.cuda_graph)" in found
    # Without workers nothing is read while others compute.
    assert waiting_share(10.0, 10.0, workers=0) == 0.5
    assert waiting_share(10.0, 10.0, workers=1) == 0.0


def test_what_a_run_has_and_the_timed_update_has_not_follows_from_the_device() -> None:
    train = TrainConfig(max_steps=1, global_batch=1)
    assert left_out(train, "cuda") == ["compile", "cuda_graph"]
    assert left_out(train, "cpu") == []


def test_a_checkpoint_is_counted_by_its_tensors() -> None:
    encoder = nn.Linear(3, 4, bias=False)  # 48 bytes
    objective = nn.ModuleList([encoder, nn.Linear(2, 2, bias=False).requires_grad_(False)])
    assert checkpoint_bytes(objective, encoder, partitioned=False) == 48 + 64 + 2 * 48
    assert checkpoint_bytes(objective, encoder, partitioned=True) == 48 + 64 + 3 * 48


def test_a_checkpoint_takes_what_was_estimated(small_corpus: Corpus, tmp_path: Path) -> None:
    cqt = {"kind": "cqt", "bins": 24, "bins_per_octave": 12, "fmin": 220.0}
    values = {
        "run": {"dir": str(tmp_path / "unused")},
        "data": {"corpus": str(small_corpus.root), "crop_seconds": 1.0, "workers": 0},
        "model": {**SMALL, "dim": 128, "ffn_dim": 512},
        "objective": {"targets": {"cqt": cqt}},
        "train": {"max_steps": 1, "global_batch": 1, "precision": "fp32"},
        "optim": {"lr": 1e-3, "warmup_steps": 1},
        "logging": {"tensorboard": False},
        "health": {"every_steps": 0},
    }
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(values))
    engines = {"ddp": "train.engine=ddp", "stage 1": "deepspeed.zero_optimization.stage=1"}
    runs: list[Run] = together(
        *(
            partial(run_stages, recipe, name, (PYTHON, 1), words=[word])
            for name, word in engines.items()
        )
    )
    world = World(0, 1, 0, CPU)
    for run, word in zip(runs, engines.values(), strict=True):
        (checkpoint,) = run.checkpoints
        taken = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
        opened, _ = open_run(load_config(recipe, [word, "run.dir=" + str(tmp_path / "x")]), world)
        assert opened is not None
        assert opened.checkpoint_bytes == pytest.approx(taken, rel=0.1), run.folder
