"""The time of a training step: kernels, teacher, links between the GPUs; or a CPU's arithmetic.

At ZeRO 1 and 2 the gradient is reduced in fp32 (4 bytes a parameter), and the weights are gathered
in bf16 (2 bytes).
"""

from typing import NamedTuple

from fastdeit.estimate.gpus import Gpu
from fastdeit.estimate.lines import Line, Source, Span, make_line, spread
from fastdeit.estimate.rates import find_rates
from fastdeit.estimate.roofline import Shape, step_ms
from fastdeit.training.zero.links import Links, choose_pieces, exposed_ms

OTHER_SHARE = 0.15
"""The share of a GPU's peak in bf16 that a network other than fastdeit's students reaches: a guess
for grouped convolutions and batch norms in eager mode."""
_OF_ROOFLINE = (0.85, 2.0)
_OF_OTHERS = (0.5, 2.0)
_OF_MEASURED = (0.9, 1.1)
_OF_CPU = (0.6, 4.0)
"""The factors from an estimate to its range. They are judgements, except the last range, which a
committed run on a shared machine needed."""
_BACKWARD = 2 / 3
"""The share of the backward pass in the time of the kernels."""
_RECOMPUTED = 4 / 3
"""The work with activation checkpointing, divided by that without."""


class Work(NamedTuple):
    """The computation of a rank in a step."""

    model: str
    shape: Shape | None
    """The sizes of a student of fastdeit all of whose weights are trained; None for any other
    model."""
    flops: float | None
    """The FLOPs of training on one image; None: they cannot be counted."""
    teacher_flops: float | None
    """The FLOPs of a forward pass of the live teacher on one image; 0 without one, None: they
    cannot be counted."""
    parameters: float
    """The number of parameters that are trained."""
    micro_batch: int
    """The samples of a micro-batch, each with `copies` forward passes."""
    micro_steps: int
    copies: int
    checkpoints: bool
    overlaps: bool

    @property
    def samples(self) -> int:
        return self.micro_batch * self.micro_steps


class ScaledStep(NamedTuple):
    """The milliseconds of a step with the gradient reduced after the backward pass, and with it
    reduced in `pieces` during that pass, as --overlap-reduce auto would divide it."""

    after_ms: float
    hidden_ms: float
    pieces: int


def scale_step(kernels_ms: float, parameters: float, ranks: int, links: Links) -> ScaledStep:
    """Return the time of a step on each of several ranks; kernels_ms: of one rank alone;
    parameters: those that are trained."""
    backward = _BACKWARD * kernels_ms
    gradient = 4 * parameters
    gather = links.ring_ms(2 * parameters, ranks)
    pieces = choose_pieces(gradient, ranks, backward, links)
    after, hidden = (
        kernels_ms + gather + exposed_ms(gradient, ranks, count, backward, links)
        for count in (1, pieces)
    )
    return ScaledStep(after, hidden, pieces)


class StepTime(NamedTuple):
    """The milliseconds of a step, None if something in it is unknown, and the lines of its
    parts."""

    total: Span | None
    lines: list[Line]


def time_gpu_step(work: Work, gpu: Gpu, ranks: int, links: Links) -> StepTime:
    """Return the time of a step on each of several GPUs."""
    student = _time_student(work, gpu)
    teacher = time_teacher(work, gpu)
    if student is None or teacher is None:
        reason = "the FLOPs of the model or of the teacher cannot be counted"
        return StepTime(None, [Line("time", "a step", None, "ms", "unknown", reason)])
    scaled = scale_step(student.value or 0, work.parameters, ranks, links)
    linked = scaled.hidden_ms if work.overlaps else scaled.after_ms
    of_links = spread(linked - (student.value or 0), *_OF_OTHERS)
    basis = f"ring over {ranks} GPUs at {links.inside_gbps:g} GB/s (docs/estimate.md)"
    lines = [student, make_line("time", "links, a step", of_links, "ms", basis)]
    total = _span(student).plus(of_links).plus(teacher)
    if work.teacher_flops:
        basis = f"FLOPs at {OTHER_SHARE:.0%} of the peak"
        lines.append(make_line("time", "the live teacher, a step", teacher, "ms", basis))
    return StepTime(total, lines)


def _span(line: Line) -> Span:
    return Span(line.value or 0, line.low or 0, line.high or 0)


def _time_student(work: Work, gpu: Gpu) -> Line | None:
    """Return the line of the model's own kernels; None for a model whose FLOPs are unknown."""
    factor = work.micro_steps * (_RECOMPUTED if work.checkpoints else 1)
    images = work.micro_batch * work.copies
    rows = find_rates("gpu_steps", gpu=gpu.peak, model=work.model, batch=images)
    source: Source = "model"
    if rows:
        span = spread(1e3 * images / rows[-1].value, *_OF_MEASURED)
        source, basis = "measured", rows[-1].source
    elif work.shape is not None:
        span = spread(step_ms(work.shape, images, gpu.reached()), *_OF_ROOFLINE)
        basis = "roofline: kernels at the rates of docs/estimate.md"
    elif work.flops is not None:
        span = spread(1e3 * work.flops * work.micro_batch / _rate(gpu), *_OF_OTHERS)
        basis = f"FLOPs at {OTHER_SHARE:.0%} of the peak"
    else:
        return None
    return make_line("time", "the model, a step", span.times(factor), "ms", basis, source)


def time_teacher(work: Work, gpu: Gpu) -> Span | None:
    """Return the milliseconds of the teacher in a step; None if its FLOPs are unknown."""
    if work.teacher_flops is None:
        return None
    return spread(1e3 * work.teacher_flops * work.samples / _rate(gpu), *_OF_OTHERS)


def _rate(gpu: Gpu) -> float:
    return OTHER_SHARE * gpu.tflops * 1e12


def time_cpu_step(work: Work, loader_ms: Span) -> StepTime:
    """Return the time of a step of a process that has one core; loader_ms: CPU milliseconds for an
    image of the loader, which uses the same core."""
    if work.flops is None or work.teacher_flops is None:
        reason = "the FLOPs of the model or of the teacher cannot be counted"
        return StepTime(None, [Line("time", "a step", None, "ms", "unknown", reason)])
    rate = find_rates("cpu_steps", dtype="fp32", threads=1)[0]
    fixed = find_rates("cpu_launches")[-1]
    flops = work.samples * (work.flops * (_RECOMPUTED if work.checkpoints else 1))
    arithmetic = spread((flops + work.samples * work.teacher_flops) / rate.value / 1e6, *_OF_CPU)
    launches = spread(work.micro_steps * fixed.value, *_OF_CPU)
    loader = loader_ms.times(work.samples)
    lines = [
        make_line(
            "time",
            "arithmetic, a step",
            arithmetic,
            "CPU ms",
            f"FLOPs at {rate.value:g} GFLOP a CPU second: {rate.source}",
        ),
        make_line("time", "launches, a step", launches, "CPU ms", fixed.source),
        make_line("time", "the loader, a step", loader, "CPU ms", "CPU ms an image, below"),
    ]
    return StepTime(arithmetic.plus(launches).plus(loader), lines)
