"""R: the original: fairseq's own HubertModel, out of a source tree that the user has.

What is fairseq's: the network, the masking of frames, ``compute_nce``, logits and the feature
penalty, in bfloat16 with a float32 copy of all parameters, as its ``FP16Optimizer`` has it. MERT's
settings, and MERT's CQT head and loss beside it, as in A. What is not: masks are drawn as for all
ways, and what ``HubertCriterion`` counts and the clipping of gradients are left out.
"""

import dataclasses
import functools
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .common import CLASSES, CODEBOOKS, CQT, FINAL_DIM, GEOMETRY, Problem, Way, stepper
from .published import TEMPERATURE, copied_stepper
from .transformers_hubert import cqt, cqt_target

FEATURE_PENALTY = 10.0
SOURCE = "fairseq/models/hubert/hubert.py"
NEEDS = ("antlr4", "bitarray", "hydra", "omegaconf")
"""What fairseq imports and Etude does not install."""
HOW = """\
R runs the original from a source tree of fairseq: --reference PATH, a checkout of
facebookresearch/fairseq or fairseq 0.12.2 unpacked. Nothing is built. The first command makes a
tree at PATH, a folder of its own; the second puts there what fairseq imports, and is enough for a
tree that exists:
    pip install --target PATH --no-deps --only-binary :all: --python-version 3.8 \\
        --platform manylinux1_x86_64 fairseq==0.12.2
    pip install --target PATH --no-deps hydra-core==1.3.2 omegaconf==2.3.0 \\
        antlr4-python3-runtime==4.9.3 bitarray"""


def check_reference(tree: Path | None) -> None:
    """Ends the run with what to do unless fairseq can be imported from ``tree``."""
    if tree is None:
        raise SystemExit(f"R: no --reference was given.\n{HOW}")
    if not (tree / SOURCE).is_file():
        raise SystemExit(f"R: {tree} has no {SOURCE}.\n{HOW}")
    path = [str(tree), *sys.path]
    absent = [name for name in NEEDS if PathFinder.find_spec(name, path) is None]
    if absent:
        raise SystemExit(f"R: fairseq imports {', '.join(absent)}: not installed here.\n{HOW}")


@functools.cache
def import_reference(tree: Path | None) -> Any:
    """``fairseq.models.hubert.hubert`` of the tree."""
    check_reference(tree)
    sys.path.insert(0, str(tree))
    logging.getLogger("fairseq").setLevel(logging.WARNING)
    with hashable_dataclasses("fairseq", "hydra"):
        from fairseq.models.hubert import hubert
    return hubert


@contextmanager
def hashable_dataclasses(*packages: str) -> Iterator[None]:
    """Dataclasses of these packages may be defaults, which from Python 3.11 on need a hash."""
    original: Any = dataclasses.dataclass

    def dataclass(cls: type | None = None, /, **options: Any) -> Any:
        def decorate(cls: type) -> Any:
            if cls.__module__.partition(".")[0] in packages:
                options.setdefault("unsafe_hash", True)
            return original(cls, **options)

        return decorate if cls is None else decorate(cls)

    dataclasses.dataclass = dataclass  # type: ignore[assignment]
    try:
        yield
    finally:
        dataclasses.dataclass = original


def fairseq_hubert(problem: Problem) -> Way:
    torch.manual_seed(0)
    model = Reference(problem)
    parameters = list(model.parameters())
    what = "fairseq's own HubertModel and compute_nce, nnAudio CQT in fp32"
    if problem.precision == "fp32":
        return Way(what, stepper(parameters, model))
    return Way(what, copied_stepper(parameters, model))


class Reference(nn.Module):
    """fairseq's model with MERT's CQT head and the loss of the problem's crops."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem
        source = import_reference(problem.reference)
        self.mask = problem.mask().bool_BF
        given = self.mask.cpu().numpy()
        source.compute_mask_indices = lambda *_, **__: given
        self.hubert = hubert(problem, source)
        self.cqt_head = nn.Linear(GEOMETRY[problem.size]["dim"], CQT["bins"])
        if problem.precision == "bf16":  # under autocast apply_mask fails: it mixes types
            self.bfloat16()
        self.train().to(problem.device)
        self.masked: Tensor | None = None
        self.hubert.final_proj.register_forward_pre_hook(self.keep_masked)
        self.cqt = cqt(problem)
        self.waveform, self.codes = problem.waveform(), problem.codes().unbind(-1)
        self.padding = torch.zeros_like(self.waveform, dtype=torch.bool)

    def keep_masked(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        """The CQT head's input (S, D): the model itself returns logits alone."""
        (self.masked,) = inputs

    def forward(self) -> Tensor:
        target = cqt_target(self.cqt, self.waveform, self.problem.frames)
        heard = self.waveform.to(self.cqt_head.weight.dtype)
        found = self.hubert(heard, target_list=list(self.codes), padding_mask=self.padding)
        loss: Tensor = FEATURE_PENALTY * found["features_pen"]
        logits, labels = self.hubert.get_logits(found), self.hubert.get_targets(found)
        for of_codebook, zero in zip(logits, labels, strict=True):
            loss = loss + F.cross_entropy(of_codebook, zero)
        return loss + F.mse_loss(self.cqt_head(self.masked).float(), target[self.mask])


def hubert(problem: Problem, source: Any) -> Any:
    """With MERT's settings, dropout 0."""
    size = GEOMETRY[problem.size]
    config = source.HubertConfig(
        label_rate=problem.grid.frame_rate,
        encoder_layers=size["layers"],
        encoder_embed_dim=size["dim"],
        encoder_ffn_embed_dim=size["ffn_dim"],
        encoder_attention_heads=size["heads"],
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        encoder_layerdrop=0.0,
        dropout_input=0.0,
        dropout_features=0.0,
        final_dim=FINAL_DIM[problem.size],
        untie_final_proj=True,
        logit_temp=TEMPERATURE,
        feature_grad_mult=0.1,
        mask_prob=0.8,
        mask_length=5,
        skip_nomask=True,
    )
    task = SimpleNamespace(sample_rate=problem.sample_rate)
    return source.HubertModel(config, task, [range(CLASSES)] * CODEBOOKS)
