"""Etude's own step, in its fast form and in the plain one that it is held against."""

import torch

from etude.data.batch import AudioBatch
from etude.models.config import EncoderConfig
from etude.models.encoder import Encoder
from etude.models.spectral import ConstantQ
from etude.pretrain.compiling import compile_regions
from etude.pretrain.masked_prediction import MaskedPrediction
from etude.pretrain.schedules import ramp
from etude.pretrain.step_graph import graph_steps
from etude.pretrain.targets.base import Target
from etude.pretrain.targets.codec import CodecTarget
from etude.pretrain.targets.cqt import CqtTarget
from etude.pretrain.targets.teacher import TeacherTarget

from .common import CLASSES, CODEBOOKS, CQT, FINAL_DIM, GEOMETRY, Problem, Way, stepper

MUSIC2VEC = {
    "position_depth": 5,
    "position_kernel": 95,
    "conv_norm": "layer",
    "normalize": True,
}


def ours(problem: Problem) -> Way:
    return _way(problem, "fast")


def ours_plain(problem: Problem) -> Way:
    return _way(problem, "plain")


def ours_compiled(problem: Problem) -> Way:
    return _way(problem, "fast", compiled=True)


def ours_graphed(problem: Problem) -> Way:
    return _way(problem, "fast", compiled=True, graphed=True)


def _way(problem: Problem, impl: str, *, compiled: bool = False, graphed: bool = False) -> Way:
    objective = build_objective(problem, impl).to(problem.device)
    if compiled and not compile_regions(objective, torch.device(problem.device)):
        raise SystemExit("compiled: torch.compile does not work here.")
    if graphed:
        graph_steps(objective, torch.device(problem.device))
    batch = AudioBatch(
        problem.waveform(),
        torch.arange(problem.crops, device=problem.device),
        torch.tensor(0),
        torch.tensor(0),
        codes={"encodec_24khz": problem.codes()},
    )
    updates = iter(range(1 << 60))

    def loss():
        with problem.autocast():
            return objective(batch).loss

    trained = [p for p in objective.parameters() if p.requires_grad]
    after = None if problem.family == "mert" else lambda: objective.after_step(next(updates))
    what = (
        f"Etude, model.impl: {impl}{', train.compile' * compiled}{', train.cuda_graph' * graphed}"
    )
    return Way(what, stepper(trained, loss, after=after))


def build_objective(problem: Problem, impl: str) -> MaskedPrediction:
    torch.manual_seed(0)
    mert = problem.family == "mert"
    dropouts = ("dropout", "attention_dropout", "projection_dropout", "layer_drop")
    config = EncoderConfig.model_validate(
        {
            **GEOMETRY[problem.size],
            **dict.fromkeys(dropouts, 0.0),
            "sample_rate": problem.sample_rate,
            "impl": impl,
            **({} if mert else MUSIC2VEC),
        }
    )
    encoder = Encoder(config)
    targets: dict[str, Target] = {}
    if mert:
        targets["codec"] = CodecTarget(
            config.dim,
            codebooks=CODEBOOKS,
            codebook_size=CLASSES,
            final_dim=FINAL_DIM[problem.size],
            temperature=0.1,
            stored="encodec_24khz",
        )
        algorithm = "fft" if impl == "fast" else "CQT1992v2"
        transform = ConstantQ(config.grid, scale="linear", algorithm=algorithm, **CQT)
        targets["cqt"] = CqtTarget(transform, config.dim, bins=CQT["bins"])
    else:
        targets["teacher"] = TeacherTarget(
            encoder,
            top_layers=8,
            feature="ffn",
            norm="instance",
            decay=ramp(0.999, 0.9999, steps=30_000),
            average_positions=False,
            predictor_dim=0,
            distance="mse",
            pooled=False,
            hears_clean=False,
            sees_other_view=False,
        )
    return MaskedPrediction(
        encoder,
        targets,
        weights=dict.fromkeys(targets, 1.0),
        seed=0,
        mask_prob=0.8,
        mask_span=5,
        feature_penalty=10.0 if mert else 0.0,
    ).train()
