"""``train.cuda_graph``: forward and backward recorded once, and launched as one from then on.

A step of this model is some two thousand kernels. With 16 crops, which is what the published runs
gave a GPU, the host takes longer to launch them than the GPU to run them.

    first step     as written: what is compiled, or made once, is
    second step    recorded, in two CUDA graphs that share their memory
    then           inputs are copied to where the graphs read them, and the graphs are launched

Whatever autograd, the engine and the optimizer do with gradients, they do as ever: the graphs are
one function of all parameters. A batch of another shape, or one with padding, runs as written; so
does everything where recording fails, which is said once.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from etude.data.batch import AudioBatch
from etude.pretrain.masked_prediction import Compute, MaskedPrediction
from etude.pretrain.metrics import Metric
from etude.pretrain.objective import StepOutput

_log = logging.getLogger(__name__)

_WARM_UP = 3
"""Steps before recording, on another stream, as torch's documentation of CUDA graphs has it."""


def graph_steps(objective: MaskedPrediction, device: torch.device) -> None:
    """Lets training steps of ``objective`` be recorded; nothing changes where there is no GPU."""
    if device.type == "cuda":
        objective.recorded = StepGraph(objective)


class StepGraph:
    """``objective.compute`` with its backward, as CUDA graphs."""

    def __init__(self, objective: MaskedPrediction) -> None:
        self._objective = objective
        self._called = False
        self._failed = False
        self._recording: _Recording | None = None
        # Where tensors are found: to walk through the modules takes half a millisecond.
        modules = list(objective.modules())
        self._parameters = [(m._parameters, name) for m in modules for name in m._parameters]
        self._buffers = [(m._buffers, name) for m in modules for name in m._buffers]

    @property
    def has_recorded(self) -> bool:
        """Whether steps are launched as one."""
        return self._recording is not None

    def __call__(self, batch: AudioBatch, keep_layers: Tensor | None) -> StepOutput:
        """What ``objective.compute`` returns."""
        given = [batch.waveform, batch.sample_ids, *batch.codes.values()]
        given += [] if keep_layers is None else [keep_layers]
        if not self._called or self._failed or batch.num_samples is not None:
            self._called = True
            return self._objective.compute(batch, keep_layers)
        held = dict.fromkeys(owner[name] for owner, name in self._parameters)  # each once
        parameters = [p for p in held if p is not None and p.requires_grad]
        buffers = [owner[name] for owner, name in self._buffers]
        # A loaded checkpoint or an engine may have put them elsewhere, a teacher's too.
        places = [tensor.data_ptr() for tensor in (*held, *buffers) if tensor is not None]
        if self._recording is None or self._recording.places != places:
            self._recording = self._record(batch, keep_layers, given, places)
            if self._recording is None:
                return self._objective.compute(batch, keep_layers)
        recording = self._recording
        if [tensor.shape for tensor in given] != [tensor.shape for tensor in recording.inputs]:
            return self._objective.compute(batch, keep_layers)
        for static, tensor in zip(recording.inputs, given, strict=True):
            static.copy_(tensor)
        loss, packed = _Replay.apply(recording, *parameters)  # type: ignore[no-untyped-call]
        return StepOutput(loss, recording.form.unpack(packed))

    def _record(
        self,
        batch: AudioBatch,
        keep_layers: Tensor | None,
        given: Sequence[Tensor],
        places: list[int],
    ) -> "_Recording | None":
        inputs = [tensor.clone() for tensor in given]
        waveform, sample_ids, *rest = inputs
        codes = dict(zip(batch.codes, rest, strict=False))
        static = batch._replace(waveform=waveform, sample_ids=sample_ids, codes=codes)
        kept = None if keep_layers is None else inputs[-1]
        self._recording = None  # its memory first
        compute = partial(afresh, self._objective.compute, static, kept)
        try:
            with aliased(self._objective) as aliases:
                return _record(compute, inputs, aliases, places)
        except RuntimeError as error:
            self._failed = True
            cause = _root_cause(error)
            _log.warning("train.cuda_graph: going on without, recording failed: %s", cause)
            return None


def _root_cause(error: BaseException) -> str:
    """The first error's first line: that of ending the recording says only that there was one."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error).strip().partition("\n")[0]


@contextmanager
def aliased(module: nn.Module) -> Iterator[list[Tensor]]:
    """Puts new leaves in the place of trained parameters, in their order, of the same memory.

    The node that adds up a parameter's gradient belongs to the stream on which it was made, and an
    engine's hooks keep it: backward on another stream would make that one wait, which it cannot
    while this one is recorded.
    """
    owners = [
        (owner, name, parameter)
        for owner in module.modules()
        for name, parameter in owner._parameters.items()
        if parameter is not None and parameter.requires_grad
    ]
    aliases = {parameter: nn.Parameter(parameter.detach()) for _, _, parameter in owners}
    try:
        for owner, name, parameter in owners:
            owner._parameters[name] = aliases[parameter]
        yield list(aliases.values())
    finally:
        for owner, name, parameter in owners:
            owner._parameters[name] = parameter


def afresh(compute: Compute, batch: AudioBatch, keep_layers: Tensor | None) -> StepOutput:
    """``compute``, with no cast that autocast kept from before, nor any kept for later.

    A cast that was not made again would not be recorded, and would stay that of the parameters as
    they were. Without autocast's cache there would be none, but what is compiled would be once
    more: whether there is one belongs to what a compiled graph holds for.
    """
    torch.clear_autocast_cache()
    try:
        return compute(batch, keep_layers)
    finally:
        torch.clear_autocast_cache()


class _Recording(NamedTuple):
    """Two graphs and the tensors that they read and write."""

    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    loss: Tensor
    packed: Tensor
    form: "Form"
    used: list[bool]
    """Which parameters have a gradient."""
    gradients: list[Tensor]
    places: list[int]


def _record(
    compute: Callable[[], StepOutput],
    inputs: list[Tensor],
    parameters: Sequence[Tensor],
    places: list[int],
) -> _Recording:
    def gradients_of(loss: Tensor) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(loss, parameters, allow_unused=True)

    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            output = compute()
            Form.of(output.metrics).pack(output.metrics)  # its kernels too are loaded before
            gradients_of(output.loss)
            del output
    torch.cuda.current_stream().wait_stream(side)
    forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    # The thread that pins the next batches goes on meanwhile.
    with torch.cuda.graph(forward, capture_error_mode="thread_local"):
        output = compute()
        form = Form.of(output.metrics)
        packed = form.pack(output.metrics)
    mode = {"pool": forward.pool(), "capture_error_mode": "thread_local"}
    with torch.cuda.graph(backward, **mode):  # type: ignore[arg-type]
        found = gradients_of(output.loss)
    used = [gradient is not None for gradient in found]
    gradients = [gradient for gradient in found if gradient is not None]
    loss = output.loss.detach()
    return _Recording(forward, backward, inputs, loss, packed, form, used, gradients, places)


class _Replay(torch.autograd.Function):
    """The graphs as one function of all parameters, which gives what is nobody else's memory."""

    @staticmethod
    def forward(ctx: Any, recording: _Recording, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        ctx.recording = recording
        recording.forward.replay()
        packed = recording.packed.clone()
        ctx.mark_non_differentiable(packed)
        return recording.loss.clone(), packed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        recording: _Recording = ctx.recording
        recording.backward.replay()
        scaled = iter(torch._foreach_mul(recording.gradients, by_loss))
        return (None, *(next(scaled) if used else None for used in recording.used))


class Form(NamedTuple):
    """Which metrics there are, so that all of them travel as one vector."""

    parts: tuple[tuple[str, type[Metric], tuple[Tensor, ...]], ...]
    """Name, kind, and for each field a tensor of its shape and type, without values."""

    @staticmethod
    def of(metrics: Mapping[str, Metric]) -> "Form":
        """The form of these."""
        return Form(
            tuple(
                (name, type(metric), tuple(t.to("meta") for t in _tensors(metric)))
                for name, metric in metrics.items()
            )
        )

    def pack(self, metrics: Mapping[str, Metric]) -> Tensor:
        """All values, float64 (N,)."""
        tensors = [t.flatten().double() for name, *_ in self.parts for t in _tensors(metrics[name])]
        return torch.cat(tensors)

    def unpack(self, packed: Tensor) -> dict[str, Metric]:
        """The metrics again, in their own types."""
        sizes = [empty.numel() for *_, fields_ in self.parts for empty in fields_]
        values = iter(torch.split(packed, sizes))
        return {
            name: kind(*(next(values).view(empty.shape).to(empty.dtype) for empty in fields_))
            for name, kind, fields_ in self.parts
        }


def _tensors(metric: Metric) -> list[Tensor]:
    return [getattr(metric, field.name) for field in fields(metric)]
