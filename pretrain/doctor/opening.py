"""A config and its corpus, opened and built as training would."""

from dataclasses import dataclass

from etude.data.errors import DataError, InputError
from etude.pretrain.assemble import build_objective
from etude.pretrain.config import CodecTargetConfig, Config
from etude.pretrain.distributed import World
from etude.pretrain.doctor.disk import checkpoint_bytes
from etude.pretrain.doctor.memory import batch_bytes
from etude.pretrain.doctor.rows import Row, failed, ok, warning
from etude.pretrain.errors import CheckpointError, ConfigError
from etude.pretrain.inputs import Inputs, check_inputs
from etude.pretrain.masked_prediction import MaskedPrediction
from etude.pretrain.memory import count_parameters, estimate_memory, stage_of
from etude.pretrain.run_folder import RunFolder


@dataclass(frozen=True)
class Opened:
    """A run that could begin."""

    config: Config
    inputs: Inputs
    objective: MaskedPrediction
    device: str
    """Of the ranks: ``cuda`` or ``cpu``."""

    @property
    def memory_bytes(self) -> float:
        """What training takes of each rank's memory, by estimate."""
        share = self.inputs.share
        return estimate_memory(
            self.config,
            count_parameters(self.config, self.inputs.classes),
            micro_batch=share.micro_batch,
            ranks=share.ranks,
            stage=stage_of(self.config),
            device=self.device,
        ).total

    @property
    def checkpoint_bytes(self) -> int:
        """What one of its checkpoints takes, about."""
        partitioned = bool(stage_of(self.config))
        return checkpoint_bytes(self.objective, self.objective.encoder, partitioned=partitioned)

    @property
    def batch_bytes(self) -> int:
        """A micro-batch on its way from a worker."""
        samples = self.config.crop_samples
        frames = samples // self.config.model.grid.hop_samples
        codes = sum(
            frames * self.inputs.tokens[0][target.codec].settings.codebooks
            for target in self.config.objective.targets.values()
            if isinstance(target, CodecTargetConfig) and target.source == "stored"
        )
        return batch_bytes(self.inputs.share.micro_batch, crop_samples=samples, codes=codes)


def open_run(config: Config, world: World) -> tuple[Opened | None, list[Row]]:
    """The run, unless something is wrong with what it reads; and what there is to say of it."""
    try:
        inputs = check_inputs(config, rank=world.rank, ranks=world.size, device=world.device.type)
        RunFolder(config.run.dir).check_config(config)
    except (ConfigError, InputError, DataError, CheckpointError) as error:
        advice = "training would end with the same words"
        return None, [failed("corpus", str(error), advice, status=error.exit_status)]
    clips = sum(corpus.clips("train") for corpus in inputs.corpora)
    hours = sum(corpus.seconds("train") for corpus in inputs.corpora) / 3600
    places = ", ".join(corpus.place for corpus in inputs.corpora)
    rows = [ok("corpus", f"{places}: {clips:,} clips and {hours:,.2f} h to train on")]
    taken = () if inputs.start is None else inputs.start.account  # told, but not odd
    advice = "training would start all the same: is it meant so?"
    rows += [warning("settings", note, advice) for note in inputs.notes if note not in taken]
    return Opened(config, inputs, build_objective(config, inputs), world.device.type), rows
