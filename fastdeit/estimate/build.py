"""The estimate of a `Config` on given hardware. Nothing is trained: models are on torch's meta
device, without values."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

from fastdeit.config.parse import require, require_value
from fastdeit.config.schema import Config
from fastdeit.data.counts import read_counts
from fastdeit.data.remote.stage import local_folder
from fastdeit.estimate.gpus import Devices
from fastdeit.estimate.inputs import list_bandwidths, list_cores, time_loader
from fastdeit.estimate.lines import Estimate, Line, Span, make_line, spread
from fastdeit.estimate.outputs import (
    count_checkpoint_bytes,
    list_cache,
    list_checkpoints,
    list_recording,
)
from fastdeit.estimate.rates import find_rates
from fastdeit.estimate.roofline import find_shape
from fastdeit.estimate.samples import DataSet, Samples, list_samples
from fastdeit.estimate.step import StepTime, Work, time_cpu_step, time_gpu_step, time_teacher
from fastdeit.estimate.teachers import MetaTeacher, make_teacher
from fastdeit.models.build import build_model, check_model, follow_weights, list_heads, precision
from fastdeit.models.finetune.trainable import count_parameters, freeze_weights
from fastdeit.models.student import Student
from fastdeit.plan.build import build_spec
from fastdeit.training.build import count_copies
from fastdeit.training.flops import count_flops
from fastdeit.training.memory.build import build_planner, find_micro_batch
from fastdeit.training.memory.checkpointing import can_checkpoint
from fastdeit.training.memory.plan import CONTEXT, GB, find_largest

_OF_PLAN = (0.9, 1.15)
_OF_RESIDENT = (0.8, 1.6)
_MOST = 1e9
"""The largest price that is accepted, in any currency."""
_SPEEDS = (1e-6, 1e6)
"""The smallest and the largest speed of a disk that is accepted, in GB/s."""
_FORWARD = 1 / 3
"""The share of the forward pass in the FLOPs of training."""


class Parts(NamedTuple):
    """The model and the teacher of a run, without values; runs_teacher: whether it runs live."""

    model: nn.Module
    teacher: MetaTeacher | None
    runs_teacher: bool


def count_data(config: Config, images: int | None, usual: DataSet | None) -> DataSet:
    """Return the counts of the data set: with `images` given, that number; else those of the index
    in --data-path, if there is one; else those of `usual`. Raises ValueError if nothing gives
    them."""
    data = config.data
    if images is None and data.data_path:
        root = local_folder(data.data_path, data.data_cache)
        if found := read_counts(root, data.train_split):
            val = read_counts(root, data.val_split)
            val_images = val.images if val else 0
            mean = found.nbytes / max(1, found.images)
            basis = "the index in --data-path"
            return DataSet(found.images, found.classes, val_images, mean, basis, basis)
    if images is None:
        allowed = "given, or fastdeit index run on --data-path"
        require_value(usual is not None, "--images", images, allowed)
        assert usual is not None
        return usual
    require_value(images >= 2, "--images", images, "2 or more")
    base = usual or DataSet(images, 1000, 0, None, "")
    return base._replace(images=images, basis="--images")


def estimate_config(
    config: Config,
    devices: Devices,
    data: DataSet,
    *,
    price: float | None = None,
    gb_per_s: float | None = None,
) -> Estimate:
    """Return the estimate of a run.

    price: of a GPU for an hour, in any currency; gb_per_s: the speed of writing on the disk with
    the checkpoints, in 10^9 bytes/s. Raises ValueError, which names the flag, for a value that is
    not possible.
    """
    config = follow_weights(config)
    _check_hardware(price, gb_per_s)
    given = "given, as --finetune has no weights yet that name theirs"
    require(bool(config.model.model), "model", config.model.model, given)
    check_model(config)
    _check_batch(config, devices.ranks, data.images)
    samples = Samples(
        data.images,
        config.optim.batch_size,
        config.optim.epochs,
        build_spec(config).repeats,
    )
    parts = build_parts(config, devices, data.classes)
    work = _describe_work(config, devices, parts, data.classes)
    lines = [*list_samples(samples, data)]
    step, rate, hours = _time_run(config, devices, samples, data, work)
    lines += [*step.lines, *rate, *hours]
    lines += _list_memory(config, devices, parts, data.classes)
    each = _rate_of_gpu(step.total, work.samples)
    size, repeats = config.data.input_size, samples.repeats
    # on a CPU the time of a step includes the loader
    lines += list_cores(each if devices.gpu else None, size, repeats)
    lines += list_bandwidths(each, samples, data, devices.ranks, devices.per_machine)
    lines += _list_teacher(config, devices, samples, data, parts)
    nbytes = count_checkpoint_bytes(parts.model, ema=config.optim.model_ema)
    lines += list_checkpoints(nbytes, config.checkpoint.keep_checkpoints, gb_per_s)
    lines += _list_cost(lines, price)
    return Estimate(f"{devices.ranks} x {devices.name}", lines)


def _check_hardware(price: float | None, gb_per_s: float | None) -> None:
    require_value(price is None or 0 <= price <= _MOST, "--price", price, f"0 to {_MOST:g}")
    slowest, fastest = _SPEEDS
    possible = gb_per_s is None or slowest <= gb_per_s <= fastest
    require_value(possible, "--disk-gb-per-s", gb_per_s, f"{slowest:g} to {fastest:g}")


def _check_batch(config: Config, ranks: int, images: int) -> None:
    batch, micro = config.optim.batch_size, config.optim.micro_batch
    allowed = f"at most {images}, the number of training images"
    require(batch <= images, "batch_size", batch, allowed)
    allowed = f"a multiple of {2 * ranks} on {ranks} processes"
    require(batch % (2 * ranks) == 0, "batch_size", batch, allowed)
    share = batch // ranks
    fits = not micro or share % micro == 0
    require(fits, "micro_batch", micro, f"a divisor of {share}, the samples of a process")


def build_parts(config: Config, devices: Devices, classes: int) -> Parts:
    """Build the model and the teacher on the meta device."""
    # the weights of --finetune are not read: their values change nothing
    fresh = config.replace(model={"finetune": "", "trainable": "all"})
    names = [str(label) for label in range(classes)]
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model, _ = build_model(fresh, names)
    freeze_weights(model, config.model.trainable, list_heads(model))
    if config.distill.distillation_type == "none":
        return Parts(model, None, False)
    teachers = [name for name, _ in config.distill.teachers]
    size = config.distill.teacher_input_size or config.data.input_size
    dtype = precision(config, devices.world())[1]
    teacher = make_teacher(teachers, classes, size, config.distill.teacher_batch, dtype)
    return Parts(model, teacher, config.distill.needs_teacher)


def _describe_work(config: Config, devices: Devices, parts: Parts, classes: int) -> Work:
    model, copies = parts.model, count_copies(config)
    flops = count_flops(model, config.data.input_size)
    micro = find_micro_batch(config, devices.world())
    whole = isinstance(model, Student) and config.model.trainable == "all"
    in_bf16 = precision(config, devices.world())[0] == "bf16"
    require(devices.gpu is None or in_bf16, "precision", "fp32", "auto or bf16 with a GPU")
    return Work(
        config.model.model,
        find_shape(model, classes) if isinstance(model, Student) and whole else None,
        flops and flops * copies,
        _count_teacher(parts),
        count_parameters(model)[1],
        micro,
        config.optim.batch_size // devices.ranks // micro,
        copies,
        config.run.grad_checkpointing,
        config.run.overlap_reduce == "auto",
    )


def _count_teacher(parts: Parts) -> float | None:
    """Return the FLOPs of the live teacher on an image; None if they cannot be counted."""
    if not parts.runs_teacher:
        return 0.0
    return None if parts.teacher is None else parts.teacher.flops


def _time_run(
    config: Config, devices: Devices, samples: Samples, data: DataSet, work: Work
) -> tuple[StepTime, list[Line], list[Line]]:
    """Return the time of a step, the lines of its rate, and the lines of the hours."""
    if devices.gpu is None:
        each = time_loader("exact", "folder", config.data.input_size, samples.repeats)
        step = time_cpu_step(work, each)
    else:
        links = devices.gpu.links(devices.per_machine)
        step = time_gpu_step(work, devices.gpu, devices.ranks, links)
    if step.total is None:
        return step, [], []
    total = step.total
    rate = total.divide(1e3 * samples.batch)
    basis = "sum of the parts"
    lines = [
        make_line("time", "a step", total, "ms", basis),
        make_line("time", "all devices", rate, "images/s", "batch size / step"),
    ]
    training = total.times(samples.steps / 3.6e6)
    evaluation = total.times(_count_evaluated(config, data) / samples.batch / 3.6e6)
    hours = training.plus(evaluation)
    basis = "forward passes at the rate of the step"
    more = [
        make_line("time", "training", training, "h", "steps x time of a step"),
        make_line("time", "evaluations", evaluation, "h", basis),
        make_line("time", "the run", hours, "h", "without start, waits and failures"),
        make_line("time", "devices", hours.times(devices.ranks), devices.unit, "hours x devices"),
    ]
    return step, lines, more


def _count_evaluated(config: Config, data: DataSet) -> float:
    """Return the number of samples that a run could train on in the time of its evaluations."""
    times = -(-config.optim.epochs // config.run.eval_epochs) + 1  # that of the results
    return times * data.val_images * (1 + config.optim.model_ema) * _FORWARD


def _rate_of_gpu(step_ms: Span | None, samples: int) -> Span | None:
    return None if step_ms is None else step_ms.divide(1e3 * samples)


def _list_memory(config: Config, devices: Devices, parts: Parts, classes: int) -> Iterator[Line]:
    world = devices.world()
    teacher = parts.teacher if parts.runs_teacher else None
    planner = build_planner(config, world, parts.model, teacher, classes)
    micro = find_micro_batch(config, world)
    checkpoints = config.run.grad_checkpointing
    basis = f"the plan of docs/memory.md, micro-batch {micro}"
    try:
        total = planner(micro, checkpoints).total
    except Exception:  # a model of timm may raise anything on the meta device
        reason = "the meta device cannot run the model"
        yield Line("memory", "a device", None, "GB", "unknown", reason)
        return
    if devices.gpu is None:
        resident = find_rates("resident")[0]
        whole = spread((total + resident.value) / GB, *_OF_RESIDENT)
        basis += f", and a process with a loader: {resident.source}"
        yield make_line("memory", "a process", whole, "GB", basis)
        return
    yield make_line("memory", "a GPU", spread(total / GB, *_OF_PLAN), "GB", basis)
    room = devices.gpu.memory_gb * GB - CONTEXT
    basis = f"90 % of {devices.gpu.memory_gb:g} GB without CUDA's context"
    forms = [(False, "largest micro-batch")]
    if can_checkpoint(parts.model):
        forms.append((True, "largest micro-batch, --grad-checkpointing"))
    roomy = config.replace(optim={"batch_size": 2**17 * devices.ranks})
    planner = build_planner(roomy, world, parts.model, teacher, classes)
    for checkpointing, name in forms:
        largest = find_largest(planner, checkpointing, room)
        yield Line("memory", name, largest, "images", "model", basis)


def _list_teacher(
    config: Config, devices: Devices, samples: Samples, data: DataSet, parts: Parts
) -> Iterator[Line]:
    if config.distill.distillation_type == "none":
        return
    period = config.distill.cache_period
    epochs = min(samples.epochs, period or samples.epochs)
    yield from list_cache(samples, data.classes, epochs)
    each = _time_teacher_image(config, devices, parts, data.classes)
    yield from list_recording(each, samples, epochs, devices.unit)


def _time_teacher_image(
    config: Config, devices: Devices, parts: Parts, classes: int
) -> Span | None:
    """Return the milliseconds of the teacher for an image, also if it does not run live; None if
    they cannot be estimated."""
    if parts.teacher is None:
        return None
    live = parts._replace(runs_teacher=True)
    work = _describe_work(config, devices, live, classes)
    if devices.gpu is not None:
        total = time_teacher(work, devices.gpu)
        return total and total.times(1 / work.samples)
    rate = find_rates("cpu_steps", dtype="fp32", threads=1)[0]
    return spread((work.teacher_flops or 0) / rate.value / 1e6, 0.6, 4.0)


def _list_cost(lines: list[Line], price: float | None) -> Iterator[Line]:
    found = [line for line in lines if line.name == "devices" and line.value is not None]
    if price is None or not found:
        return
    line = found[0]
    cost = Span(line.value or 0, line.low or 0, line.high or 0).times(price)
    yield make_line("cost", "the run", cost, "", f"{line.unit} x {price:g}")
