"""Configs: YAML, inheritance, overrides, and what people are told when they are wrong."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from training_parts import ROOT

from etude.pretrain.config import Config, CqtTargetConfig, KmeansTargetConfig
from etude.pretrain.config_file import as_values, dump_yaml, flatten, load_config
from etude.pretrain.deepspeed_settings import deepspeed_settings
from etude.pretrain.errors import ConfigError

QUICKSTART = ROOT / "configs" / "quickstart.yaml"
ALL_CONFIGS = sorted(
    path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "questions"
)
RESOLVED = as_values(load_config(QUICKSTART))

MINIMAL = """
run: {dir: runs/x}
data: {corpus: corpora/x}
objective:
  targets:
    logmel: {kind: kmeans, centroids: a.safetensors, weight: 2.0}
    cqt: {kind: cqt}
train: {max_steps: 10, global_batch: 4}
optim: {lr: 1.0e-3, warmup_steps: 2}
"""


def refusal(path: Path, *overrides: str) -> str:
    """What the user is told."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert caught.value.exit_status == 2
    return str(caught.value)


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "minimal.yaml"
    path.write_text(MINIMAL)
    return path


def child(path: Path, text: str) -> Path:
    """A config beside ``path`` that is based on it."""
    derived = path.with_name("child.yaml")
    derived.write_text(f"base: {path.name}\n{text}")
    return derived


# What loads.


@pytest.mark.parametrize("path", ALL_CONFIGS, ids=lambda path: path.stem)
def test_every_config_of_the_repository_loads_and_its_dump_reads_back_equal(
    path: Path, tmp_path: Path
) -> None:
    config = load_config(path)
    dumped = tmp_path / "dumped.yaml"
    dumped.write_text(dump_yaml(config))
    assert load_config(dumped) == config


def test_a_dump_reads_back_equal_after_overrides_of_every_type(minimal: Path) -> None:
    words = ["optim.eps=1e-12", "optim.schedule_steps=30", "objective.mask.fraction=.25"]
    words += ["deepspeed={zero_optimization: {stage: 1}}", "init_from=12/3"]
    config = load_config(minimal, words)
    assert config.optim.eps == 1e-12 and config.init_from == Path("12/3")
    minimal.write_text(dump_yaml(config))
    assert load_config(minimal) == config


def test_a_config_takes_from_its_base_what_it_does_not_give(minimal: Path) -> None:
    derived = child(minimal, "optim: {lr: 2.0e-3}\nobjective: {targets: {logmel: {weight: 3}}}")
    config, base = load_config(derived), load_config(minimal)
    assert (config.optim.lr, config.optim.warmup_steps) == (2e-3, 2)
    assert config.objective.targets["logmel"].weight == 3.0
    changed = {key for key, value in flatten(as_values(config)) if value != _leaves(base)[key]}
    assert changed == {"optim.lr", "objective.targets.logmel.weight"}


def test_bases_form_a_chain_and_are_found_beside_the_file_that_names_them(minimal: Path) -> None:
    child(minimal, "seed: 1\ntrain: {max_steps: 20}")
    folder = minimal.parent / "ablations"
    folder.mkdir()
    (folder / "third.yaml").write_text("base: ../child.yaml\nseed: 2\n")
    config = load_config(folder / "third.yaml")
    assert (config.seed, config.train.max_steps, config.optim.lr) == (2, 20, 1e-3)


def test_a_target_of_another_kind_inherits_nothing_from_the_one_it_replaces(minimal: Path) -> None:
    targets = load_config(
        child(minimal, "objective: {targets: {logmel: {kind: cqt, bins: 12}}}")
    ).objective.targets
    assert targets["logmel"] == CqtTargetConfig(kind="cqt", bins=12)
    assert isinstance(targets["cqt"], CqtTargetConfig) and targets["cqt"].bins == 336


def test_null_takes_a_target_away_in_a_file_and_on_the_command_line(minimal: Path) -> None:
    removed = load_config(child(minimal, "objective: {targets: {cqt: null}}"))
    overridden = load_config(minimal, ["objective.targets.cqt=null"])
    assert list(removed.objective.targets) == ["logmel"]
    assert removed == overridden


def test_a_later_override_wins_over_an_earlier_one_and_over_the_file(minimal: Path) -> None:
    config = load_config(minimal, ["optim.lr=1", "model.layers=3", "optim.lr=3e-4"])
    assert config.optim.lr == 3e-4 and config.model.layers == 3
    added = load_config(minimal, ["objective.targets.chroma={kind: kmeans, centroids: b}"])
    assert isinstance(added.objective.targets["chroma"], KmeansTargetConfig)


@pytest.mark.parametrize(
    ("text", "value"),
    [("3e-4", 3e-4), ("1E+2", 100.0), (".5", 0.5), ("7.", 7.0), ("1_000.5", 1000.5), ("2", 2.0)],
)
def test_whatever_looks_like_a_number_is_one(minimal: Path, text: str, value: float) -> None:
    assert load_config(minimal, [f"optim.lr={text}"]).optim.lr == value


@pytest.mark.parametrize(("text", "value"), [("010", 10), ("09", 9), ("+5", 5), ("1_000", 1000)])
def test_an_integer_is_decimal_whatever_it_starts_with(
    minimal: Path, text: str, value: int
) -> None:
    assert load_config(minimal, [f"seed={text}"]).seed == value


@pytest.mark.parametrize("text", ["yes", "off", "12:30", "2024-05-01", "0x10"])
def test_words_that_older_yaml_turns_into_something_else_stay_words(
    minimal: Path, text: str
) -> None:
    assert load_config(minimal, [f"run.dir={text}"]).run.dir == Path(text)


def test_an_empty_value_is_null(minimal: Path) -> None:
    config = load_config(child(minimal, "init_from:\nobjective:\n  targets:\n    cqt:\n"))
    assert config.init_from is None and list(config.objective.targets) == ["logmel"]


# What is refused, and how.


def test_an_unknown_key_is_told_with_its_nearest_key_and_the_file_that_has_it(
    minimal: Path,
) -> None:
    derived = child(minimal, "train: {max_step: 5}\nobjectiv: {visible_weight: 1.0}")
    message = refusal(derived)
    assert f"unknown key `train.max_step` in {derived}. Did you mean `max_steps`?" in message
    assert f"unknown key `objectiv` in {derived}. Did you mean `objective`?" in message
    minimal.write_text(MINIMAL.replace("warmup_steps", "warmup"))
    message = refusal(child(minimal, ""))
    assert f"unknown key `optim.warmup` in {minimal}. Did you mean `warmup_steps`?" in message
    assert "`optim.warmup_steps` is missing" in message


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("optim.lrr=1", "unknown key `optim.lrr` in `optim.lrr=1`. Did you mean `lr`?"),
        ("optm.lr=1", "unknown key `optm` in `optm.lr=1`. Did you mean `optim`?"),
        ("objective.targets.cqt.binz=3", "`objective.targets.cqt.binz=3`. Did you mean `bins`?"),
        ("model.layer_dorp=.1", "Did you mean `layer_drop`?"),
        ("objective.targets.new={kind: cqt, binz: 3}", "unknown key `objective.targets.new.binz`"),
        ("objective.targets.new={kind: cqt, binz: 3}", "in `objective.targets.new={kind: cqt, b"),
        ("seed.x=1", "`seed.x=1`: seed is a value, not a section"),
        ("seed", "`seed` is no override: write key.path=value"),
        ("=3", "is no override"),
    ],
)
def test_a_wrong_override_is_told_with_the_word_itself(minimal: Path, word: str, told: str) -> None:
    minimal.write_text(MINIMAL + "seed: 3\n")
    assert told in refusal(minimal, word)


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("train.max_steps=many", "should be a valid integer, but is 'many'"),
        ("train.max_steps=10.0", "should be a valid integer, but is 10.0"),
        ("train.max_steps=true", "should be a valid integer, but is True"),
        ("train.max_steps=0", "greater than or equal to 1, but is 0"),
        ("optim.lr='1e-3'", "should be a valid number, but is '1e-3'"),
        ("optim.lr=", "should be a valid number, but is None"),
        ("optim.lr=1e999", "finite number"),
        ("data.crop_seconds=1e999", "finite number"),
        ("optim.betas=[0.9, 1.0]", "less than 1"),
        ("optim.betas=[0.9]", "optim.betas"),
        ("logging.tensorboard=1", "should be a valid boolean, but is 1"),
        ("run.dir=5", "should be a valid string, but is 5"),
        ("train.precision=fp16", "should be 'fp32' or 'bf16', but is 'fp16'"),
        ("train.micro_batch=some", "should be a valid integer, but is 'some'"),
        ("model=3", "should be an object, but is 3"),
        ("model.conv_dims=[512, x]", "should be a valid integer, but is 'x'"),
        ("objective.targets.cqt.kind=mel", "'mel'"),
        ("objective.targets={}", "at least 1 item"),
    ],
)
def test_a_wrong_type_is_told_with_the_key_the_value_and_where_it_is_from(
    minimal: Path, word: str, told: str
) -> None:
    message = refusal(minimal, word)
    assert told in message
    assert f"`{word}`" in message
    key = word.partition("=")[0]
    assert f"`{key}`" in message or f"`{key}." in message


@pytest.mark.parametrize("word", ["train.micro_batch=x", "deepspeed=3", "init_from=[1]"])
def test_no_message_holds_names_from_inside_the_checker(minimal: Path, word: str) -> None:
    message = refusal(minimal, word)
    for inside in ("literal[", "dict[", "function-", "lax-or-strict", "constrained", "union["):
        assert inside not in message


@pytest.mark.parametrize(
    "key", ["run.dir", "data.corpus", "train.max_steps", "train.global_batch", "optim.lr"]
)
def test_a_missing_key_is_told_by_its_whole_path(minimal: Path, key: str) -> None:
    values = yaml.safe_load(MINIMAL)
    section, _, name = key.partition(".")
    del values[section][name]
    minimal.write_text(yaml.safe_dump(values))
    assert f"`{key}` is missing in {minimal}" in refusal(minimal)


def test_a_target_without_a_kind_is_told_what_is_missing(minimal: Path) -> None:
    message = refusal(minimal, "objective.targets.new.bins=3")
    assert "`objective.targets.new.kind` is missing" in message


@pytest.mark.parametrize(
    "text", ["seed: 1\nseed: 2", "optim: {lr: 1, lr: 2}", "data: {workers: 1}\ndata: {workers: 2}"]
)
def test_a_key_given_twice_is_refused(minimal: Path, text: str) -> None:
    message = refusal(child(minimal, text))
    assert "occurs twice" in message and "child.yaml" in message and "line" in message


def test_a_missing_file_is_told_with_the_nearest_name(minimal: Path) -> None:
    message = refusal(minimal.with_name("minimum.yaml"))
    assert f"there is no configuration file {minimal.with_name('minimum.yaml')}" in message
    assert f"Did you mean {minimal}?" in message
    assert "Did you mean" not in refusal(minimal.with_name("qqq.json"))
    assert "there is no configuration file" in refusal(minimal.parent)


def test_a_file_that_is_its_own_base_is_refused(minimal: Path) -> None:
    derived = child(minimal, "")
    minimal.write_text("base: child.yaml\n")
    for path in (minimal, derived):
        assert "is its own base" in refusal(path)
    minimal.write_text("base: minimal.yaml\n")
    assert "is its own base" in refusal(minimal)


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.mkdir [MADE]",
        "!!python/object/new:os.mkdir [MADE]",
        "!!python/name:os.mkdir",
        "!!python/module:os",
    ],
)
def test_yaml_that_would_construct_python_objects_is_refused(minimal: Path, value: str) -> None:
    made = minimal.with_name("made")
    value = value.replace("MADE", str(made))
    for message in (refusal(child(minimal, f"seed: {value}")), refusal(minimal, f"seed={value}")):
        assert "is not valid YAML" in message
    assert not made.exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "must hold `key: value` lines"),
        (b"- a\n- b\n", "must hold `key: value` lines"),
        (b"run: {dir: x", "is not valid YAML"),
        (b"a: 1\n---\nb: 2\n", "is not valid YAML"),
        (b"run: {dir: {{name}}}\n", "cannot be a key"),
        (b"seed: !!set {a}\n", "no plain type"),
        ("seed: \xfc\n".encode("latin-1"), "is not text in UTF-8"),
    ],
)
def test_a_file_that_is_no_plain_yaml_mapping_is_refused_by_name(
    tmp_path: Path, content: bytes, told: str
) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    message = refusal(path)
    assert told in message and str(path) in message


# Geometry.


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["data.crop_seconds=0.05"], "gives 3 frames, too few for 1 masked spans of 5 frames"),
        (["data.crop_seconds=0.01"], "too few"),
        (["objective.mask.span_frames=400"], "too few"),
        (["model.sample_rate=8000"], "objective.targets.cqt: the top bin of the CQT would be at"),
        (["objective.targets.cqt.bins=410"], "above half the sample rate (12000 Hz)"),
        (["objective.mixture={prob: .5, max_seconds: 6}"], "objective.mixture excerpts"),
        (["objective.mixture={prob: .5, min_seconds: 2}"], "objective.mixture excerpts"),
        (
            ["optim.warmup_steps=30", "optim.schedule_steps=30"],
            "must exceed optim.warmup_steps",
        ),
        (["model.heads=7"], "heads (7) must divide dim (768)"),
        (["model.position_groups=7"], "position_groups (7) must divide dim (768)"),
        (["model.conv_dims=[512, 512]"], "one entry per convolution, but have 2, 7 and 7"),
        (["model.padding=exact"], "padding: exact needs conv_norm: layer"),
    ],
)
def test_an_impossible_combination_is_refused_with_its_numbers(
    minimal: Path, words: list[str], told: str
) -> None:
    assert told in refusal(minimal, *words)


@pytest.mark.parametrize(
    "words",
    [
        ["data.crop_seconds=0.12", "objective.mask.prob=.1"],
        ["model.sample_rate=8000", "objective.targets.cqt=null"],
        ["objective.targets.cqt.bins=409"],
        ["objective.mixture={prob: .5, max_seconds: 5, min_seconds: 5}"],
        ["objective.mixture={prob: 0, max_seconds: 60}"],
        ["optim.warmup_steps=30", "optim.schedule_steps=31"],
        ["optim.warmup_steps=30"],
        ["model.padding=exact", "model.conv_norm=layer"],
    ],
)
def test_a_combination_just_inside_the_limits_is_accepted(minimal: Path, words: list[str]) -> None:
    load_config(minimal, words)


TEACHER = "objective.targets.teacher={kind: teacher, top_layers: 12}"
TRI_STAGE = "optim.schedule=tri_stage"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["optim.hold_steps=3"], "optim.hold_steps goes with optim.schedule: tri_stage"),
        (["optim.hold_steps=3"], "it is 3 with linear"),
        (["optim.hold_steps=0"], "it is 0 with linear"),
        ([TRI_STAGE], "it is None with tri_stage"),
        (
            [TRI_STAGE, "optim.hold_steps=9"],
            "optim.warmup_steps (2) and optim.hold_steps (9) must not exceed the schedule's 10",
        ),
        (
            [TRI_STAGE, "optim.hold_steps=19", "optim.schedule_steps=20"],
            "optim.hold_steps (19) must not exceed the schedule's 20",
        ),
        (["optim.schedule=cosine"], "should be 'linear' or 'tri_stage', but is 'cosine'"),
        (
            [TEACHER, "model.layers=11"],
            "objective.targets.teacher.top_layers (12) must not exceed model.layers (11)",
        ),
        (
            [TEACHER, "objective.targets.teacher.view=other"],
            "objective.targets.teacher.view: other needs objective.views of 2 or more, but it is 1",
        ),
        ([TEACHER, "objective.targets.teacher.decay=1.1"], "less than or equal to 1, but is 1.1"),
        (["objective.views=0"], "greater than or equal to 1, but is 0"),
        (["objective.decoder.groups=7"], "groups (7) must divide dim (384)"),
        (["objective.decoder={dim: 24}"], "groups (16) must divide dim (24)"),
        (["objective.decoder.kernel=6"], "kernel must be odd, but is 6"),
        (["health.min_target_std=-1"], "greater than or equal to 0, but is -1"),
        (["health.every_step=1"], "Did you mean `every_steps`?"),
    ],
)
def test_what_a_teacher_and_its_schedule_cannot_be_is_told_in_one_line(
    minimal: Path, words: list[str], told: str
) -> None:
    message = refusal(minimal, *words)
    assert told in message and "\n" not in message


@pytest.mark.parametrize(
    "words",
    [
        [TRI_STAGE, "optim.hold_steps=8"],
        [TRI_STAGE, "optim.hold_steps=0"],
        [TEACHER, "model.layers=12"],
        [TEACHER, "objective.targets.teacher.view=other", "objective.views=2"],
        [TEACHER, "objective.targets.teacher.decay=1", "objective.targets.teacher.end_decay=0"],
        [TEACHER, "objective.targets.teacher.anneal_steps=0"],
        ["objective.decoder={dim: 48, groups: 16, kernel: 1, layers: 1}", "objective.views=8"],
    ],
)
def test_a_teacher_and_its_schedule_just_inside_the_limits_are_accepted(
    minimal: Path, words: list[str]
) -> None:
    load_config(minimal, words)


TEACHER_ALONE = ("objective.targets={teacher: {kind: teacher}}", "model.conv_norm=layer")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["data.min_clip_seconds=5.1"], "(5.1) must not exceed data.crop_seconds (5.0)"),
        (["model.conv_norm=group"], "needs model.conv_norm: layer"),
        (["objective.decoder={}"], "objective.decoder needs equally many visible frames"),
        (["objective.targets.teacher.pooled=true"], "which objective.targets.teacher would hear"),
        (["objective.targets.cqt={kind: cqt}"], "which objective.targets.cqt would hear"),
        (["data.min_clip_seconds=0.06"], "data.min_clip_seconds (0.06) gives 4 frames, too few"),
    ],
)
def test_short_clips_are_refused_where_their_padding_would_be_heard(
    minimal: Path, words: list[str], told: str
) -> None:
    given = [*TEACHER_ALONE, "data.min_clip_seconds=1"]
    assert load_config(minimal, given).min_clip_samples == 24_000
    assert load_config(minimal, given[:-1]).min_clip_samples == 120_000
    assert told in refusal(minimal, *given, *words)


def test_an_empty_decoder_section_is_data2vec_2s_and_a_teachers_that_of_music2vec(
    minimal: Path,
) -> None:
    config = load_config(minimal, ["objective.decoder={}", TEACHER])
    assert load_config(minimal).objective.decoder is None
    decoder = config.objective.decoder
    assert decoder is not None
    assert (decoder.layers, decoder.dim, decoder.kernel, decoder.groups) == (4, 384, 7, 16)
    published = load_config(ROOT / "configs" / "music2vec_v1.yaml").objective.targets["teacher"]
    teacher = config.objective.targets["teacher"]
    assert published == teacher.model_copy(update={"top_layers": 8})


def test_the_schedule_is_as_long_as_the_run_unless_it_is_given(minimal: Path) -> None:
    assert load_config(minimal).schedule_steps == 10
    assert load_config(minimal, ["optim.schedule_steps=400"]).schedule_steps == 400
    assert load_config(minimal, ["data.crop_seconds=2.5"]).crop_samples == 60_000


# Every key of the quick start, one by one.


def _leaves(config: Config) -> dict[str, Any]:
    return dict(flatten(as_values(config)))


def _changed(values: dict[str, Any], key: str, value: Any, *, name: str | None = None) -> str:
    """YAML of ``values`` with the leaf ``key`` replaced, under ``name`` where that is given."""
    changed = json.loads(json.dumps(values))
    *parents, leaf = key.split(".")
    section = changed
    for parent in parents:
        section = section[parent]
    del section[leaf]
    section[name or leaf] = value
    return yaml.safe_dump(changed, sort_keys=False)


@pytest.mark.parametrize("key", [key for key, _ in flatten(RESOLVED)])
def test_every_key_of_the_quick_start_is_refused_when_misspelt(key: str, tmp_path: Path) -> None:
    *parents, leaf = key.split(".")
    misspelt = leaf[:-1] + "qx"
    path = tmp_path / "misspelt.yaml"
    path.write_text(_changed(RESOLVED, key, dict(flatten(RESOLVED))[key], name=misspelt))
    message = refusal(path)
    if leaf == "kind":
        assert f"`{key}` is missing in {path}" in message
    else:
        assert f"unknown key `{'.'.join([*parents, misspelt])}` in {path}." in message


@pytest.mark.parametrize("key", [key for key, _ in flatten(RESOLVED)])
def test_every_key_of_the_quick_start_is_refused_with_a_value_of_a_wrong_type(
    key: str, tmp_path: Path
) -> None:
    value = dict(flatten(RESOLVED))[key]
    text = isinstance(value, str) or key.endswith(
        ("init_from", "deepspeed", ".centroids", "probe.cache")
    )
    wrong = 5 if text and key != "train.micro_batch" else "words"
    path = tmp_path / "wrong.yaml"
    for given in (wrong, [[wrong]]):
        path.write_text(_changed(RESOLVED, key, given))
        message = refusal(path)
        assert f"`{key}" in message and str(path) in message


def test_the_config_is_read_without_importing_torch() -> None:
    modules = "etude.pretrain.config, etude.pretrain.config_file, etude.models.config"
    modules += ", etude.pretrain.deepspeed_settings, etude.pretrain.errors"
    code = f"import sys, {modules}; print(*sorted(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in result.stdout.split()}
    assert "etude" in loaded and "pydantic" in loaded
    assert not loaded & {"torch", "fairseq2", "deepspeed", "numpy"}


# DeepSpeed's own settings.


def settings(path: Path, *words: str, micro_batch: int = 1, ranks: int = 2) -> dict[str, Any]:
    return deepspeed_settings(load_config(path, words), micro_batch=micro_batch, ranks=ranks)


def deepspeed_refusal(path: Path, *words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        settings(path, *words)
    assert caught.value.exit_status == 2
    return str(caught.value)


def test_the_deepspeed_settings_follow_from_the_run(minimal: Path) -> None:
    generated = settings(minimal, "train.global_batch=24", micro_batch=3)
    assert generated["train_batch_size"] == 24
    assert generated["train_micro_batch_size_per_gpu"] == 3
    assert generated["gradient_accumulation_steps"] == 4
    assert generated["gradient_clipping"] == 10.0
    assert generated["zero_optimization"]["stage"] == 0


def test_parameters_and_gradients_stay_float32_under_deepspeed(minimal: Path) -> None:
    generated = settings(minimal)
    assert not generated.keys() & {"bf16", "fp16", "optimizer", "scheduler"}
    autocast = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    assert generated["torch_autocast"] == autocast
    assert settings(minimal, "train.precision=fp32")["torch_autocast"]["enabled"] is False


def test_own_deepspeed_settings_are_merged_from_a_mapping_or_a_file(minimal: Path) -> None:
    merged = settings(minimal, "deepspeed={zero_optimization: {stage: 2}, dump_state: true}")
    assert merged["zero_optimization"]["stage"] == 2
    assert merged["zero_optimization"]["reduce_bucket_size"] == 25_000_000
    assert merged["dump_state"] is True
    file = minimal.with_name("ds.json")
    file.write_text('{"zero_optimization": {"stage": 2}, "dump_state": true}')
    assert settings(minimal, f"deepspeed={file}") == merged


def test_own_deepspeed_settings_may_repeat_the_run_or_say_auto_but_not_contradict(
    minimal: Path,
) -> None:
    repeated = "deepspeed={train_batch_size: 4, gradient_clipping: auto}"
    assert settings(minimal, repeated) == settings(minimal)
    message = deepspeed_refusal(minimal, "deepspeed={gradient_clipping: 1.0}")
    assert "deepspeed.gradient_clipping is 1.0, but it follows from optim.clip_norm" in message
    message = deepspeed_refusal(minimal, "deepspeed={bf16: {enabled: true}}")
    assert "deepspeed.bf16" in message and "train.precision" in message
    assert "train.global_batch" in deepspeed_refusal(minimal, "deepspeed={train_batch_size: 8}")


def test_an_unknown_deepspeed_setting_is_told_with_the_nearest_one(minimal: Path) -> None:
    message = deepspeed_refusal(minimal, "deepspeed={zero_optimisation: {stage: 1}}")
    assert "deepspeed.zero_optimisation" in message
    assert "Did you mean `zero_optimization`?" in message


@pytest.mark.parametrize("stage", ["3", "auto", "-1"])
def test_zero_stages_other_than_0_1_and_2_are_refused(minimal: Path, stage: str) -> None:
    message = deepspeed_refusal(minimal, f"deepspeed={{zero_optimization: {{stage: {stage}}}}}")
    assert "deepspeed.zero_optimization.stage" in message and "0, 1 and 2" in message
    for accepted in (0, 1, 2):
        own = f"deepspeed={{zero_optimization: {{stage: {accepted}}}}}"
        assert settings(minimal, own)["zero_optimization"]["stage"] == accepted


def test_a_deepspeed_section_that_is_no_section_is_refused(minimal: Path) -> None:
    message = deepspeed_refusal(minimal, "deepspeed={zero_optimization: 2}")
    assert "deepspeed.zero_optimization must be a mapping, but is 2" in message


def test_a_deepspeed_file_that_cannot_be_read_is_told_by_name(minimal: Path) -> None:
    file = minimal.with_name("ds.json")
    word = f"deepspeed={file}"
    assert f"{file} cannot be read" in deepspeed_refusal(minimal, word)
    for content in (b"{broken", b"\xff\xfe"):
        file.write_bytes(content)
        assert f"{file} cannot be read" in deepspeed_refusal(minimal, word)
    file.write_text("[1]")
    assert f"{file} must hold a JSON object" in deepspeed_refusal(minimal, word)
