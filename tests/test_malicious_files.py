"""Files that would run code or lead out of their folder, at every door by which Etude reads one.

    door      a whole folder, the file in it that is replaced, how Etude reads it, the error
    payload   what is put there, and what a careless reader does with it

A row of the table is red if the payload ran, if the file was taken for a good one, or if the error
is not ours or does not name the file. Then a careless reader is let in: a payload that does nothing
for him either would prove nothing.
"""

import functools
import io
import json
import os
import pickle
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
import yaml
from audio_files import tune, write
from torch import distributed as dist
from training_parts import SMALL, feature_settings, random_encoder, small_quantizer
from transformers import AutoModel, HubertModel, dynamic_module_utils
from webdataset.gopen import gopen

from etude.data.errors import DataError, InputError
from etude.data.feature_file import read_metadata
from etude.data.files import file_sha256
from etude.data.index import verify
from etude.data.pipeline import training_batches
from etude.data.plan import BatchShare, CropPlan
from etude.data.prepare import PrepareSettings, prepare
from etude.data.prepare_track import TrackSettings, pack_track, record_path
from etude.data.remote import Cache, open_remote
from etude.data.shards import Shard, fingerprint, open_corpus
from etude.data.sources import scan_sources
from etude.data.tar import add_member, walk_members
from etude.data.tokens import (
    TokenSettings,
    _fingerprint,
    open_tokens,
    shard_keys,
    tokens_root,
    write_token_index,
    write_token_shard,
)
from etude.models.encoder import Encoder
from etude.models.hf.card import CardFacts
from etude.models.hf.export import export_encoder
from etude.models.weights import save_encoder
from etude.pretrain.checkpoint import Checkpoints
from etude.pretrain.clustering import PartFile, fit_kmeans
from etude.pretrain.codec import OFFICIAL_FILE, load_codec
from etude.pretrain.config import Config
from etude.pretrain.config_file import as_values, load_config
from etude.pretrain.curves import read_curve
from etude.pretrain.deepspeed_settings import deepspeed_settings
from etude.pretrain.distributed import World
from etude.pretrain.engine import Engine
from etude.pretrain.engine_ddp import DdpEngine
from etude.pretrain.errors import CheckpointError, ConfigError
from etude.pretrain.inputs import check_inputs
from etude.pretrain.quantizer import load_quantizer, read_request, save_quantizer
from etude.pretrain.report_probe import read_probe
from etude.pretrain.report_run import read_run
from etude.pretrain.run_folder import RunFolder
from etude.pretrain.starting import load_start
from etude.probes import corpus as probe_corpus
from etude.probes.frozen import find_model, load_model

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
PREPARED = PrepareSettings(clip_seconds=4, min_seconds=2, shard_mb=0.4, valid_fraction=0.3)
QUIET: dict[str, Any] = {"workers": 0, "say": lambda message: None}
PROBED = probe_corpus.CorpusSettings(kind="solo", tracks=1, sample_rate=8000, seconds=1.0)
CODEC = "encodec_24khz"
TOKENS = TokenSettings(CODEC, "0" * 64, 24_000, 320, 8, 1024)
RUN: dict[str, Any] = {
    "run": {"dir": "run"},
    "data": {"corpus": "corpus"},
    "model": {key: list(v) if isinstance(v, tuple) else v for key, v in SMALL.items()},
    "objective": {"targets": {"cqt": {"kind": "cqt"}}},
    "train": {"max_steps": 100, "global_batch": 1, "precision": "fp32"},
    "optim": {"lr": 1e-3, "warmup_steps": 1},
}


class Parts:
    """Whole things, made when a row first asks for them; every row takes a copy."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def music(self) -> Path:
        for number in range(3):
            write(self.folder / "music" / f"tune {number}.flac", tune(5 + number, seed=number))
        return self.folder / "music"

    @cached_property
    def corpus(self) -> Path:
        """With codec tokens."""
        corpus = prepare([self.music], self.folder / "corpus", PREPARED, **QUIET)
        for shard, keys in shard_keys(corpus):
            path = tokens_root(corpus, CODEC) / shard.file
            path.parent.mkdir(parents=True, exist_ok=True)
            write_token_shard(path, CODEC, [(key, np.zeros((300, 8), np.uint16)) for key in keys])
        write_token_index(corpus, CODEC, TOKENS)
        return corpus.root

    @cached_property
    def config(self) -> Config:
        path = self.folder / "run.yaml"
        path.write_text(yaml.safe_dump(RUN))
        return load_config(path)

    @cached_property
    def encoder(self) -> Encoder:
        return random_encoder()

    @cached_property
    def hf(self) -> Path:
        card = CardFacts(name="tiny", paradigm="none", trained_on=date(2026, 1, 1))
        export_encoder(self.encoder, self.folder / "hf", format="hubert", card=card)
        return self.folder / "hf"

    @cached_property
    def ddp(self) -> Engine:
        return DdpEngine(random_encoder(), self.config, ALONE, micro_batches=1)

    @cached_property
    def deepspeed(self) -> Engine:
        from etude.pretrain.engine_deepspeed import DeepSpeedEngine

        settings = deepspeed_settings(self.config, micro_batch=1, ranks=1)
        settings["zero_optimization"]["stage"] = 1
        return DeepSpeedEngine(random_encoder(), self.config, settings, ALONE)

    @functools.cache  # noqa: B019 - as long as the module's tests
    def checkpoint(self, engine: str) -> Path:
        return Checkpoints(self.folder / engine, keep=1, world=ALONE).save(
            10, engine=getattr(self, engine), encoder=self.encoder, state={"corpus": "abc"}
        )


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    """In the world of one that other tests have begun, or in one of its own."""
    begun, threads = dist.is_initialized(), torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", "0")
        patch.setenv("DS_ACCELERATOR", "cpu")
        if not begun:
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        made = Parts(tmp_path_factory.mktemp("parts"))
        yield made
        if not begun and "deepspeed" in vars(made):
            import deepspeed

            deepspeed.comm.destroy_process_group()  # it keeps groups of its own
        elif not begun:
            dist.destroy_process_group()
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Door:
    """Where a file comes in."""

    name: str
    furnish: Callable[[Parts, Path], Path]
    """Fills an empty folder with what belongs around the file, and says where that goes."""
    read: Callable[[Parts, Path], object]
    """As Etude does."""
    error: type[Exception] | None
    """``None``: what is foreign in the file is left alone, as documented."""
    named: str | None = None
    """What the error names, if not the file."""


@dataclass(frozen=True)
class Payload:
    """What is put there."""

    name: str
    fill: Callable[[Path, Path], object]
    """Fills the file; executed, or followed out of its folder, it makes the path given second."""
    careless: Callable[[Path, Path], object] | None = None
    """Executes or follows it; none where the content is merely impossible."""
    named: str | None = None
    """What the error names, if not what the door says."""


Fill = Callable[[Path, Path], None]
Furnish = Callable[[Parts, Path], Path]


def file_in(name: str) -> Furnish:
    return lambda parts, folder: folder / name


def copy_of(part: str, *names: str, without: str = "") -> Furnish:
    """A copy of a part, in which the file is called by the last of the names."""

    def furnish(parts: Parts, folder: Path) -> Path:
        shutil.copytree(getattr(parts, part), folder / part)
        if without:
            (folder / part / without).unlink()
        return folder.joinpath(part, *names)

    return furnish


def text(content: str) -> Fill:
    def fill(file: Path, marker: Path) -> None:
        file.write_text(content.replace("{marker}", str(marker)))

    return fill


def with_keys(**values: object) -> Fill:
    """Changes a JSON object."""

    def fill(file: Path, marker: Path) -> None:
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return fill


NESTED = Payload("nested", text("[" * 100_000))
A_LIST = Payload("a list", text("[1]"))


# Pickles.


class Call:
    """Unpickled, it is a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self._call


def shell(marker: Path) -> Call:
    return Call(os.system, f"mkdir '{marker}'")


def evaluated(marker: Path) -> Call:
    return Call(eval, f"__import__('os').mkdir({str(marker)!r})")


def in_numpys_name(marker: Path) -> Call:
    """Passes a list of trusted packages."""
    return Call(np.testing._private.utils.runstring, f"import os; os.mkdir({str(marker)!r})", {})


def in_an_array(marker: Path) -> np.ndarray[Any, Any]:
    return np.array([shell(marker)], dtype=object)


def in_another_file(marker: Path) -> Call:
    inner = io.BytesIO()
    torch.save(shell(marker), inner)
    unsafe = functools.partial(torch.load, weights_only=False)
    return Call(unsafe, Call(io.BytesIO, inner.getvalue()))


def saved(make: Callable[[Path], object]) -> Fill:
    return lambda file, marker: torch.save({"model": {"a": make(marker)}}, file)


def plain_pickle(file: Path, marker: Path) -> None:
    file.write_bytes(pickle.dumps(shell(marker), protocol=2))


def old_torch(file: Path, marker: Path) -> None:
    torch.save(shell(marker), file, _use_new_zipfile_serialization=False)


def oldest_torch(file: Path, marker: Path) -> None:
    """From before torch 0.1.10."""
    with tarfile.open(file, "w") as tar:
        add_member(tar, "storages", pickle.dumps(shell(marker), protocol=2))


class Script(torch.nn.Module):
    """TorchScript can write files, and does it when it is loaded."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path, self.training = state
        torch.save(torch.zeros(1), self.path)


def torchscript(file: Path, marker: Path) -> None:
    torch.jit.save(torch.jit.script(Script(str(marker))), file)


def trust_torch(file: Path, marker: Path) -> None:
    # What runs, runs first; that the file holds nothing else is noticed later.
    with suppress(Exception):
        torch.load(file, weights_only=False)


PICKLES = [
    Payload("os.system", saved(shell), trust_torch),
    Payload("plain pickle", plain_pickle, trust_torch),
]
TORCH_FILES = [
    *PICKLES,
    Payload("eval", saved(evaluated), trust_torch),
    Payload("numpy runs a text", saved(in_numpys_name), trust_torch),
    Payload("object array", saved(in_an_array), trust_torch),
    Payload("torch file in a torch file", saved(in_another_file), trust_torch),
    Payload("pickle as text", text("cos\nmkdir\n(S'{marker}'\ntR."), trust_torch),
    Payload("torch before 1.6", old_torch, trust_torch),
    Payload("torch as a tar", oldest_torch, trust_torch),
    Payload("TorchScript", torchscript, trust_torch),
]


def checkpoint(engine: str, name: str) -> Furnish:
    def furnish(parts: Parts, folder: Path) -> Path:
        whole = parts.checkpoint(engine)
        shutil.copytree(whole, folder / whole.name)
        (file,) = (folder / whole.name).rglob(name)
        return file

    return furnish


def resume(engine: str) -> Callable[[Parts, Path], None]:
    """Whoever wrote the file wrote the manifest, too: nothing is known by its hash."""

    def read(parts: Parts, file: Path) -> None:
        step = next(path for path in file.parents if path.name.startswith("step-"))
        manifest = step / "manifest.json"
        if file != manifest:
            content = json.loads(manifest.read_text())
            size, sha256 = file.stat().st_size, file_sha256(file)
            content["files"][str(file.relative_to(step))] = {"bytes": size, "sha256": sha256}
            manifest.write_text(json.dumps(content))
        (step / "manifest.sha256").write_text(file_sha256(manifest) + "\n")
        checkpoints = Checkpoints(step.parent, keep=1, world=ALONE)
        found = checkpoints.newest_valid()
        assert found is not None
        checkpoints.load_engine(found[0], getattr(parts, engine))

    return read


def encoder_folder(parts: Parts, folder: Path) -> Path:
    save_encoder(parts.encoder, folder)
    return folder / "encoder.safetensors"


def start_from(parts: Parts, file: Path) -> None:
    load_start(file if file.suffix == ".pt" else file.parent, parts.encoder.config)


def probe(parts: Parts, file: Path) -> None:
    load_model(find_model(file.parent), device=torch.device("cpu"))


def go_on_clustering(parts: Parts, file: Path) -> None:
    part, settings = PartFile(file, {}), feature_settings()
    fit_kmeans([], settings, clusters=3, iterations=1, seed=0, part=part)


def pickled_request(file: Path, marker: Path) -> None:
    """Where JSON is expected, in a file that is whole."""
    save_quantizer(small_quantizer(), file, report={})
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"]["request"] = pickle.dumps(shell(marker), protocol=0).decode()
    changed = json.dumps(header).encode()
    file.write_bytes(len(changed).to_bytes(8, "little") + changed + content[start:])


HF_BIN = copy_of("hf", "pytorch_model.bin", without="model.safetensors")
HF_WEIGHTS = copy_of("hf", "model.safetensors")
K_MEANS = file_in("k.safetensors")
MODEL_STATES = checkpoint("deepspeed", "*model_states.pt")
OPTIM_STATES = checkpoint("deepspeed", "*optim_states.pt")
REQUEST = Door("request of k-means", K_MEANS, lambda _, file: read_request(file), ConfigError)

TORCH_DOORS = [
    Door("engine.pt", checkpoint("ddp", "engine.pt"), resume("ddp"), CheckpointError),
    Door("DeepSpeed's model", MODEL_STATES, resume("deepspeed"), CheckpointError),
    Door("DeepSpeed's optimizer", OPTIM_STATES, resume("deepspeed"), CheckpointError),
    Door("init_from fairseq", file_in("old.pt"), start_from, ConfigError),
    Door("init_from pytorch_model.bin", HF_BIN, start_from, ConfigError),
    Door("codec.th", file_in("codec.th"), lambda _, file: load_codec(file), ConfigError),
]
SAFE_DOORS = [
    Door("authors' codec", file_in(OFFICIAL_FILE), lambda _, file: load_codec(file), ConfigError),
    Door("safe codec", file_in("c.safetensors"), lambda _, file: load_codec(file), ConfigError),
    Door("init_from encoder.safetensors", encoder_folder, start_from, ConfigError),
    Door("probe of encoder.safetensors", encoder_folder, probe, InputError),
    Door("init_from model.safetensors", HF_WEIGHTS, start_from, ConfigError, "/hf"),
    Door("probe of model.safetensors", HF_WEIGHTS, probe, InputError, "/hf"),
    Door("probe of pytorch_model.bin", HF_BIN, probe, InputError),
    Door("k-means", K_MEANS, lambda _, file: load_quantizer(file), ConfigError),
    Door("unfinished k-means", file_in("k.part.safetensors"), go_on_clustering, ConfigError),
    REQUEST,
]
PICKLE_ROWS = [
    *((door, payload) for door in TORCH_DOORS for payload in TORCH_FILES),
    *((door, payload) for door in SAFE_DOORS for payload in PICKLES),
    (REQUEST, Payload("a pickle in its place", pickled_request)),
]


# Arrays and corpora.


def object_array(file: Path, marker: Path) -> None:
    with file.open("wb") as out:
        np.save(out, in_an_array(marker), allow_pickle=True)


def zipped_array(file: Path, marker: Path) -> None:
    with file.open("wb") as out:
        np.savez(out, metadata=in_an_array(marker), allow_pickle=True)


def array_header(header: str) -> Fill:
    def fill(file: Path, marker: Path) -> None:
        content = header.replace("{marker}", str(marker)).ljust(9000).encode()
        file.write_bytes(b"\x93NUMPY\x01\x00" + len(content).to_bytes(2, "little") + content)

    return fill


def trust_numpy(file: Path, marker: Path) -> None:
    found = np.load(file, allow_pickle=True)
    if isinstance(found, np.lib.npyio.NpzFile):
        found["metadata"]


CODE_HEADER = "{'descr': __import__('os').mkdir('{marker}'), 'fortran_order': False, 'shape': ()}"
HUGE_HEADER = "{'descr': '<u2', 'fortran_order': False, 'shape': (17592186044416, 8)}"
PICKLED_ARRAYS = [
    Payload("object array", object_array, trust_numpy),
    Payload("plain pickle", plain_pickle, trust_numpy),
    Payload("npz", zipped_array, trust_numpy),
]
ARRAYS = [
    *PICKLED_ARRAYS,
    Payload("code", array_header(CODE_HEADER), lambda file, _: eval(file.read_bytes()[10:])),
    Payload("nested", array_header("(" * 3000)),
    Payload("as large as no memory", array_header(HUGE_HEADER)),
]


def reindex(root: Path, **changes: object) -> None:
    """Makes the index that of the files again, as whoever forges them would; then changes it."""
    path = root / "index.json"
    index = json.loads(path.read_text())
    for shard in index["shards"]:
        file = root / shard["file"]
        shard |= {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
    index["shards"][0] |= changes.pop("first", {})
    shards = tuple(Shard(**shard) for shard in index["shards"])
    members = np.load(root / "members.npy").tobytes()
    index["fingerprint"] = fingerprint(index["sample_rate"], shards, members)
    index["blocks_sha256"] = None  # which would not be those of other members
    path.write_text(json.dumps({**index, **changes}))


def reindex_tokens(folder: Path) -> None:
    """The same of codec tokens."""
    path = folder / "index.json"
    index = json.loads(path.read_text())
    for shard in index["shards"]:
        file = folder / shard["file"]
        shard |= {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
    del index["fingerprint"]
    members = np.load(folder / "members.npy").tobytes()
    path.write_text(json.dumps({**index, "fingerprint": _fingerprint(index, members)}))


def hear_and_verify(parts: Parts, file: Path) -> None:
    """As training does, with either reader, and as a user does who does not trust a corpus."""
    corpus = open_corpus(file.parent)
    plan = CropPlan(corpus.split("train"), crop_samples=24_000, hop_samples=320, seed=0)
    share = BatchShare(4, 4, 0, 1)
    for stock in (False, True):
        stream = training_batches(
            plan, share, first_update=0, workers=0, pin_memory=False, stock=stock
        )
        with closing(stream) as endless:  # type: ignore[type-var]
            assert len(list(islice(endless, 2))) == 2
    plan.split.read_audio_bytes(0)
    verify(corpus.root)


def read_tokens(root: Path) -> None:
    split = open_tokens(open_corpus(root), CODEC).split("train")
    for clip in range(len(split.members)):
        split.read(clip)


def forge_tokens(parts: Parts, file: Path) -> None:
    """Puts the array into a sidecar in place of a clip's tokens, with an index that knows it."""
    folder = tokens_root(open_corpus(file.parent), CODEC)
    path = folder / "train-000000.tar"
    contents = {member.name: member.content for member in walk_members(path)}
    contents[next(iter(contents))] = file.read_bytes()
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in contents.items():
            add_member(tar, name, content)
    members = np.load(folder / "members.npy")
    for row, member in enumerate(walk_members(path)):
        members["offset"][row], members["size"][row] = member.offset, member.size
        members["crc32"][row] = zlib.crc32(member.content)
    np.save(folder / "members.npy", members)
    reindex_tokens(folder)
    read_tokens(file.parent)


def probes_cache(parts: Parts, folder: Path) -> Path:
    (folder / PROBED.folder_name).mkdir()
    (folder / PROBED.folder_name / probe_corpus.LABELS_NAME).write_text("[]")
    return folder / PROBED.folder_name / probe_corpus.AUDIO_NAME


def open_probes_cache(parts: Parts, file: Path) -> None:
    probe_corpus.open_corpus(PROBED, cache=file.parents[1])


def not_ours(parts: Parts, file: Path) -> None:
    assert read_metadata(file) is None


def first_row(**values: int) -> Fill:
    """What members.npy says of a clip."""

    def fill(file: Path, marker: Path) -> None:
        members = np.load(file)
        for name, value in values.items():
            members[name][0] = value
        np.save(file, members)
        (reindex_tokens if file.parent.name == CODEC else reindex)(file.parent)

    return fill


def read_tokens_around(parts: Parts, file: Path) -> None:
    read_tokens(file.parents[2])


def token_file(name: str) -> Furnish:
    return copy_of("corpus", "targets", CODEC, name)


MEMBERS = Door("members.npy", copy_of("corpus", "members.npy"), hear_and_verify, DataError)
BLOCKS = Door("blocks.npy", copy_of("corpus", "blocks.npy"), hear_and_verify, DataError)
TOKEN_MEMBERS = Door(
    "tokens' members.npy", token_file("members.npy"), read_tokens_around, DataError
)
TOKEN = Door(
    "a clip's tokens", copy_of("corpus", "x.npy"), forge_tokens, DataError, "train-000000.tar"
)
PROBES = Door("probes' corpus", probes_cache, open_probes_cache, DataError, PROBED.folder_name)
FEATURES = Door("features", file_in("tune.npz"), not_ours, None)
SAFE_FEATURES = Door("safe features", file_in("tune.safetensors"), not_ours, None)

ARRAY_ROWS = [
    *(
        (door, payload)
        for door in (MEMBERS, BLOCKS, TOKEN_MEMBERS, TOKEN, PROBES)
        for payload in ARRAYS
    ),
    *((FEATURES, payload) for payload in PICKLED_ARRAYS),
    *((SAFE_FEATURES, payload) for payload in PICKLES),
    (SAFE_FEATURES, Payload("nested", text("\0\0\1" + "\0" * 5 + "[" * 100_000))),
    (MEMBERS, Payload("no such shard", first_row(shard=99))),
    (MEMBERS, Payload("a huge clip", first_row(audio_size=1 << 44), named="train-000000.tar")),
    (TOKEN_MEMBERS, Payload("no such shard", first_row(shard=99))),
    (TOKEN_MEMBERS, Payload("huge tokens", first_row(size=1 << 44), named="train-000000.tar")),
]


# Tars.


def add(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", content: bytes = b"") -> Fill:
    """A member more. {marker} and {shard} stand for paths."""

    def fill(file: Path, marker: Path) -> None:
        paths = {"{marker}": str(marker), "{shard}": str(file), "{outside}": str(marker.parent)}
        member = tarfile.TarInfo(paths.get(name, name))
        member.type, member.linkname, member.size = kind, paths.get(link, link), len(content)
        member.devmajor, member.devminor = 1, 3
        with tarfile.open(file, "a") as tar:
            tar.addfile(member, io.BytesIO(content))
        reindex(file.parent)

    return fill


def through_a_link(file: Path, marker: Path) -> None:
    add("out", tarfile.SYMTYPE, "{outside}")(file, marker)
    add("out/executed", content=b"x")(file, marker)


def pickle_called(extension: str) -> Fill:
    """Beside the sound of a clip, by its key: part of a sample to webdataset."""

    def fill(file: Path, marker: Path) -> None:
        *_, last = walk_members(file)
        name = last.name.replace(".json", extension)
        add(name, content=pickle.dumps(shell(marker)))(file, marker)

    return fill


def extract(file: Path, marker: Path) -> None:
    # Python before 3.11.4 trusts all, and knows no filter.
    trusting: Any = {"filter": "fully_trusted"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(file) as tar:
        tar.extractall(marker.with_name("here"), **trusting)


def decode_all(file: Path, marker: Path) -> None:
    for _ in webdataset.WebDataset(str(file), shardshuffle=False).decode():
        pass


SHARD = Door("a shard", copy_of("corpus", "train-000000.tar"), hear_and_verify, DataError)
TARS = [
    Payload("a member by its whole path", add("{marker}", content=b"x"), extract),
    Payload("a member outside", add("../executed", content=b"x"), extract),
    Payload("a symbolic link", add("{marker}", tarfile.SYMTYPE, "{shard}"), extract),
    Payload("a hard link", add("{marker}", tarfile.LNKTYPE, "{shard}"), extract),
    Payload("a file through a link", through_a_link, extract),
    Payload("a pipe", add("{marker}", tarfile.FIFOTYPE), extract),
    Payload("a device", add("{marker}", tarfile.CHRTYPE)),  # not everybody can make one
    Payload("a .pyd", pickle_called(".pyd"), decode_all),
    Payload("a .pickle", pickle_called(".pickle"), decode_all),
]
TAR_ROWS = [(SHARD, payload) for payload in TARS]


# YAML.


def trust_yaml(file: Path, marker: Path) -> None:
    yaml.unsafe_load(file.read_text())


def base_of(parts: Parts, folder: Path) -> Path:
    (folder / "run.yaml").write_text(yaml.safe_dump({"base": "base.yaml", **RUN}))
    return folder / "base.yaml"


def load_beside(parts: Parts, file: Path) -> None:
    load_config(file.with_name("run.yaml"))


def override(parts: Parts, file: Path) -> None:
    path = file.with_name("run.yaml")
    path.write_text(yaml.safe_dump(RUN))
    load_config(path, [file.read_text().replace(": ", "=", 1)])


def run_folder(name: str) -> Furnish:
    def furnish(parts: Parts, folder: Path) -> Path:
        (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
        (folder / "config.yaml").write_text(yaml.safe_dump({"config": as_values(parts.config)}))
        return folder / name

    return furnish


def continue_run(parts: Parts, file: Path) -> None:
    RunFolder(file.parent).check_config(parts.config)


def run_with(**settings: object) -> Fill:
    return text(yaml.safe_dump({**RUN, **settings}, width=10_000))


def run_command(file: Path, marker: Path) -> None:
    """As webdataset opens a place."""
    gopen(f"pipe:mkdir '{marker}'").close()


def open_inputs(parts: Parts, file: Path) -> None:
    check_inputs(load_config(file), rank=0, ranks=1, device="cpu")


def start_from_place(parts: Parts, file: Path) -> None:
    load_start(Path(file.read_text()), parts.encoder.config)


def directive(file: Path, marker: Path) -> None:
    tags = "%TAG !p! tag:yaml.org,2002:python/object/apply:"
    file.write_text(f"{tags}\n---\nseed: !p!os.mkdir ['{marker}']\n")


PIPE = "pipe:mkdir {marker}"
WHOLE_TAG = "seed: !<tag:yaml.org,2002:python/object/apply:os.mkdir> ['{marker}']"
CONFIG = Door("a run's YAML", file_in("run.yaml"), lambda _, file: load_config(file), ConfigError)
CONTINUED = Door("config.yaml of a run", run_folder("config.yaml"), continue_run, ConfigError)
REPORTED = Door(
    "config.yaml in a report",
    run_folder("config.yaml"),
    lambda _, file: read_run(file.parent),
    InputError,
)
YAML_DOORS = [
    CONFIG,
    Door("base of a run", base_of, load_beside, ConfigError),
    Door("an override", file_in("word"), override, ConfigError, "seed="),
    CONTINUED,
    REPORTED,
]
TAGS = [
    Payload("apply", text("seed: !!python/object/apply:os.mkdir ['{marker}']"), trust_yaml),
    Payload("new", text("seed: !!python/object/new:os.mkdir ['{marker}']"), trust_yaml),
    Payload("the whole tag", text(WHOLE_TAG), trust_yaml),
    Payload("a name", text("seed: !!python/name:os.system")),
    Payload("no number", text("seed: !!float x")),
    Payload("no date", text("seed: !!timestamp x")),
    Payload("a list in itself", text("seed: &a [*a]")),
    Payload("nested", text("seed: " + "[" * 5000)),
]
INPUTS = Door("data.corpus", file_in("run.yaml"), open_inputs, ConfigError, "executed")
READ_INPUTS = replace(INPUTS, error=InputError)
YAML_ROWS = [
    *((door, payload) for door in YAML_DOORS for payload in TAGS),
    (CONFIG, Payload("a tag by another name", directive, trust_yaml)),
    (CONFIG, Payload("base is a device", run_with(base="/dev/zero"), named="/dev/zero")),
    (CONFIG, Payload("base is memory", run_with(base="/proc/self/mem"), named="/proc/self/mem")),
    (CONFIG, Payload("base is a command", run_with(base=PIPE), run_command, named="executed")),
    (CONTINUED, A_LIST),
    *(
        (
            INPUTS,
            Payload(f"{what}, {reader}", run_with(data=data | {"reader": reader}), run_command),
        )
        for reader in ("planned", "webdataset")
        for what, data in (
            ("a command", {"corpus": PIPE}),
            ("one of several", {"corpus": [{"corpus": "a"}, {"corpus": PIPE}]}),
            ("a chain of stores", {"corpus": f"simplecache::{PIPE}"}),
        )
    ),
    (READ_INPUTS, Payload("after a blank", run_with(data={"corpus": f" {PIPE}"}), run_command)),
    (READ_INPUTS, Payload("capitals", run_with(data={"corpus": f"PIPE{PIPE[4:]}"}), run_command)),
    (
        Door("init_from", file_in("word"), start_from_place, InputError, "executed"),
        Payload("a command", text(PIPE), run_command),
    ),
]


# JSON of checkpoints, corpora and runs.


def outside_of(marker: Path) -> Path:
    path = marker.with_name("outside")
    path.write_text("not yours")
    return path


def manifest_of_another_file(file: Path, marker: Path) -> None:
    outside = outside_of(marker)
    content = json.loads(file.read_text())
    entry = {"bytes": outside.stat().st_size, "sha256": file_sha256(outside)}
    content["files"][str(outside)] = entry
    file.write_text(json.dumps(content))


def follow_manifest(file: Path, marker: Path) -> None:
    *_, name = json.loads(file.read_text())["files"]
    shutil.copy(file.parent / name, marker)


def shard_called(name: str) -> Fill:
    """A whole shard, but outside of the corpus."""

    def fill(file: Path, marker: Path) -> None:
        outside = marker.with_name("outside.tar")
        shutil.copy(file.with_name("train-000000.tar"), outside)
        called = name.replace("{outside}", str(outside)).replace("{marker}", str(marker))
        reindex(file.parent, first={"file": called})

    return fill


def open_shard(file: Path, marker: Path) -> None:
    shutil.copy(file.parent / json.loads(file.read_text())["shards"][0]["file"], marker)


def open_shard_as_place(file: Path, marker: Path) -> None:
    with gopen(json.loads(file.read_text())["shards"][0]["file"]) as stream:
        content = stream.read()
    if content:
        marker.write_bytes(content)


def read_from_url(parts: Parts, file: Path) -> None:
    corpus = open_remote(file.parent.as_uri(), Cache(file.parents[1] / "cache", 10**9))
    corpus.split("train").read_audio_bytes(0)


def make_cache(file: Path, marker: Path) -> None:
    (file.parents[1] / "cache").mkdir(exist_ok=True)
    (file.parents[1] / "cache" / json.loads(file.read_text())["fingerprint"]).mkdir()


def index_with(**changes: object) -> Fill:
    return lambda file, marker: reindex(file.parent, **changes)


def read_deepspeed(parts: Parts, file: Path) -> None:
    config = parts.config.model_copy(update={"deepspeed": file})
    deepspeed_settings(config, micro_batch=1, ranks=1)


TRAINER = Door("trainer.json", checkpoint("ddp", "trainer.json"), resume("ddp"), CheckpointError)
MANIFEST = replace(TRAINER, name="manifest.json", furnish=checkpoint("ddp", "manifest.json"))
INDEX = Door("index.json", copy_of("corpus", "index.json"), hear_and_verify, DataError)
URL_INDEX = replace(INDEX, name="index.json at a URL", read=read_from_url)
TOKEN_INDEX = Door("tokens' index.json", token_file("index.json"), read_tokens_around, DataError)
DEEPSPEED = Door("deepspeed's JSON", file_in("ds.json"), read_deepspeed, ConfigError)
EXIT = Door("EXIT.json", run_folder("EXIT.json"), lambda _, file: read_run(file.parent), None)
METRICS = replace(EXIT, name="metrics.jsonl", furnish=run_folder("metrics.jsonl"))
RESULTS = Door("results.json", file_in("results.json"), lambda _, f: read_probe(f.parent), None)
CURVE = Door("a curve", file_in("curve.json"), lambda _, file: read_curve(file), InputError)

OUTSIDE = [{"file": "../../index.json", "bytes": 1, "sha256": ""}]
SHARD_NAMES = [
    Payload("a shard outside", shard_called("../../outside.tar"), open_shard),
    Payload("a shard by its whole path", shard_called("{outside}"), open_shard),
    Payload("a shard by its URL", shard_called("file:{outside}"), open_shard_as_place),
    Payload("a shard that is a command", shard_called(PIPE), open_shard_as_place),
]
JSON_ROWS = [
    *(
        (door, payload)
        for door in (
            TRAINER,
            MANIFEST,
            INDEX,
            TOKEN_INDEX,
            DEEPSPEED,
            EXIT,
            METRICS,
            RESULTS,
            CURVE,
        )
        for payload in (NESTED, A_LIST)
    ),
    (TRAINER, Payload("a path for a step", with_keys(step="../.."))),
    (MANIFEST, Payload("no files", with_keys(files=None))),
    (MANIFEST, Payload("a file outside", manifest_of_another_file, follow_manifest, "outside")),
    *((door, payload) for door in (INDEX, URL_INDEX) for payload in SHARD_NAMES),
    (URL_INDEX, Payload("a path as hash", index_with(fingerprint="../../executed"), make_cache)),
    (INDEX, Payload("an infinite rate", with_keys(sample_rate=float("inf")))),
    (INDEX, Payload("a text for a number", index_with(first={"samples": "3"}))),
    (TOKEN_INDEX, Payload("an infinite rate", with_keys(sample_rate=float("inf")))),
    (TOKEN_INDEX, Payload("a shard outside", with_keys(shards=OUTSIDE))),
    (DEEPSPEED, Payload("plain pickle", plain_pickle, trust_torch)),
]


# Hugging Face's settings.


def code_beside(file: Path, marker: Path) -> None:
    (file.parent / "evil.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    classes = {"AutoConfig": "evil.C", "AutoModel": "evil.M"}
    with_keys(auto_map=classes, trust_remote_code=True)(file, marker)


def trust_code(file: Path, marker: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, suppress(AttributeError):
        modules = str(marker.with_name("modules"))
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", modules)
        patch.syspath_prepend(modules)
        AutoModel.from_pretrained(file.parent, trust_remote_code=True)


def trust_the_hub(file: Path, marker: Path) -> None:
    """transformers runs code from the hub if the package `kernels` is there, and else misses it."""
    with pytest.raises((ImportError, ValueError), match="kernels"):
        HubertModel.from_pretrained(file.parent)
    marker.mkdir()


def weights_outside(file: Path, marker: Path) -> None:
    whole = file.with_name("model.safetensors")
    content = whole.read_bytes()
    names = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    del names["__metadata__"]
    whole.rename(file.parents[1] / "outside.safetensors")
    parts = dict.fromkeys(names, "../outside.safetensors")
    file.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": parts}))


def follow_parts(file: Path, marker: Path) -> None:
    HubertModel.from_pretrained(file.parent)
    marker.mkdir()


HF = Door("config.json", copy_of("hf", "config.json"), start_from, ConfigError)
HF_ALONE = replace(HF, error=None)
HF_PARTS = replace(HF, name="its parts", furnish=copy_of("hf", "model.safetensors.index.json"))
KERNELS = with_keys(_attn_implementation="evil/kernels")
HF_ROWS = [
    (HF, NESTED),
    (HF, A_LIST),
    (HF_ALONE, Payload("code beside it", code_beside, trust_code)),
    (HF_ALONE, Payload("code on the hub", KERNELS, trust_the_hub)),
    (HF, Payload("nothing for a list", with_keys(conv_kernel=None), named="/hf")),
    (HF, Payload("a function", with_keys(hidden_act="os.system"), named="/hf")),
    (HF, Payload("a text for a number", with_keys(attention_relax="x"))),
    (HF_PARTS, Payload("weights outside", weights_outside, follow_parts)),
]


# What is prepared.


def prepare_again(parts: Parts, file: Path) -> None:
    prepare([parts.music], file.parent, PREPARED, **QUIET)


def packed(parts: Parts, folder: Path) -> Path:
    """All tracks packed, no shard written."""
    work = folder / "corpus" / ".work"
    work.mkdir(parents=True)
    shutil.copy(parts.corpus / ".prepare.json", folder / "corpus")
    sources = scan_sources([parts.music], outside=folder).sources
    for source in sources:
        pack_track(source, TrackSettings(24_000, 4, 2, "artist"), work)
    return record_path(work, sources[0].id)


def clips_outside(file: Path, marker: Path) -> None:
    """By its id a track's clips are read, and deleted as soon as they are in a shard."""
    shutil.copy(file.with_suffix(".clips"), marker.with_name("outside.clips"))
    with_keys(id="../../../outside")(file, marker)


def follow_record(file: Path, marker: Path) -> None:
    shutil.copy(file.parent / f"{json.loads(file.read_text())['id']}.clips", marker)


def with_table(parts: Parts, file: Path) -> None:
    prepare([parts.music], file.parent / "corpus", PREPARED, metadata=file, **QUIET)


def table(row: str) -> Fill:
    return lambda file, marker: text(row.replace("{outside}", str(outside_of(marker))))(
        file, marker
    )


def follow_table(file: Path, marker: Path) -> None:
    last = file.read_text().splitlines()[-1]
    shutil.copy(file.parent / (json.loads(last)["file"] if last[0] == "{" else last), marker)


def prepare_file(parts: Parts, file: Path) -> None:
    prepare([file], file.parent / "corpus", PREPARED, **QUIET)


BEGUN = Door(".prepare.json", copy_of("corpus", ".prepare.json"), prepare_again, InputError)
RECORD = Door(
    "a track's record", packed, lambda parts, f: prepare_again(parts, f.parent), DataError
)
CSV = Door("--metadata as CSV", file_in("table.csv"), with_table, InputError)
JSONL = Door("--metadata as JSONL", file_in("table.jsonl"), with_table, InputError)
PLAYLIST = "#EXTM3U\n#EXTINF:5,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
PREPARE_ROWS = [
    *((door, payload) for door in (BEGUN, RECORD) for payload in (NESTED, A_LIST)),
    (RECORD, Payload("clips outside", clips_outside, follow_record)),
    (CSV, Payload("a track outside", table("file\n../outside"), follow_table)),
    (CSV, Payload("a track by its whole path", table("file\n{outside}"), follow_table)),
    (JSONL, Payload("a track outside", table('{"file": "../outside"}'), follow_table)),
    (JSONL, NESTED),
    (
        Door("song.m4a", file_in("song.m4a"), prepare_file, DataError),
        Payload("a playlist", text(PLAYLIST)),
    ),
]

TABLE: Sequence[tuple[Door, Payload]] = [
    *PICKLE_ROWS,
    *ARRAY_ROWS,
    *TAR_ROWS,
    *YAML_ROWS,
    *JSON_ROWS,
    *HF_ROWS,
    *PREPARE_ROWS,
]


@pytest.mark.filterwarnings("ignore:.*looks like a TorchScript archive")
@pytest.mark.parametrize(
    ("door", "payload"), TABLE, ids=[f"{door.name}: {payload.name}" for door, payload in TABLE]
)
def test_a_malicious_file_is_refused_by_name_and_nothing_in_it_runs(
    door: Door, payload: Payload, parts: Parts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "here").mkdir()
    marker = tmp_path / "executed"
    file = door.furnish(parts, tmp_path / "here")
    payload.fill(file, marker)
    if door.error is None:
        door.read(parts, file)
    else:
        with pytest.raises(door.error) as caught:
            door.read(parts, file)
        # What is wrong with a checkpoint is told in the log: the one before is tried first.
        assert (payload.named or door.named or file.name) in str(caught.value) + caplog.text
    assert not marker.exists()
    if payload.careless is not None:
        payload.careless(file, marker)
        assert marker.exists(), "nothing happens even where the file is trusted"
