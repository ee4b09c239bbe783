"""The findings on how a checkpoint of deit or timm was trained, from the command line in it.

Both trainers store their `args`. Names and defaults: deit, main.py; timm 1.0.31, train.py. deit's
lr is scaled by then (its main.py replaces it); both count the batch of one process.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from fastdeit.audit.findings import Finding, Findings
from fastdeit.audit.network import judge_drop_path
from fastdeit.audit.samples import read_plan, read_repeats
from fastdeit.audit.teacher import read_teachers
from fastdeit.audit.training import (
    read_clipping,
    read_distillation,
    read_lengths,
    read_number,
    read_peak,
)
from fastdeit.config.parse import parse_rand_augment
from fastdeit.display.text import shorten
from fastdeit.kernels.distill import KINDS
from fastdeit.plan.spec import PlanSpec

_LARGEST = 1e15
_LETTERS = 60
_BETAS = (None, [0.9, 0.999], (0.9, 0.999))
"""The betas of AdamW in DeiT, in every form."""
_MIX = ("mixup", "cutmix", "mixup_prob", "mixup_switch_prob")
_NONE = (None, "", "none", "None")


def read_arguments(args: Mapping[str, Any], depth: int) -> Findings:
    """Return the findings on training; an argument that is absent or of another type decides
    nothing. depth: blocks of the model."""
    readers = (
        _read_optimizer(args),
        _read_schedule(args),
        _read_losses(args),
        _read_samples(args),
        _read_model(args, depth),
    )
    return {name: finding for reader in readers for name, finding in reader}


def _number(args: Mapping[str, Any], name: str) -> float | None:
    """Return an argument that is a finite number, else None."""
    value = args.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # a file of unknown origin may hold an integer of any size
    return float(value) if abs(value) < _LARGEST else None


def _text(args: Mapping[str, Any], name: str) -> str:
    """Return an argument that is a text, printable and short, else ""."""
    value = args.get(name)
    return shorten(value, _LETTERS) if isinstance(value, str) else ""


def _is_deits(args: Mapping[str, Any]) -> bool:
    return "distillation_type" in args


def _read_optimizer(args: Mapping[str, Any]) -> Iterator[tuple[str, Finding]]:
    decay, opt = _number(args, "weight_decay"), _text(args, "opt")
    if decay is not None and opt:
        betas = args.get("opt_betas")
        shown = f", betas {shorten(betas, _LETTERS)}" if betas else ""
        text = f"{opt}, weight decay {decay:g}{shown}"
        is_adamw = opt in ("adamw", "fusedadamw")
        yield "optimizer", Finding(text, is_adamw and decay == 0.05 and betas in _BETAS)
    batch = _count_batch(args)
    peak = _number(args, "lr")
    if batch and peak is not None:
        yield "learning_rate", read_peak(peak, batch, _number(args, "layer_decay") in (None, 1))
    norm = _number(args, "clip_grad")
    if norm is not None or args.get("clip_grad", 0) is None:
        yield "clip_grad", read_clipping(norm)


def _count_batch(args: Mapping[str, Any]) -> int:
    """Return the batch of all processes, 0 if it is not known."""
    factors = [_number(args, name) for name in ("batch_size", "world_size")]
    if None in factors:
        return 0
    batch, processes = (int(factor or 0) for factor in factors)
    return batch * processes * int(_number(args, "grad_accum_steps") or 1)


def _read_schedule(args: Mapping[str, Any]) -> Iterator[tuple[str, Finding]]:
    form = _text(args, "sched")
    low, peak = (_number(args, name) for name in ("min_lr", "lr"))
    if form and low is not None and peak is not None:
        constant = low >= peak
        text = f"constant, {peak:g}" if constant else f"{form} to {low:g}"
        yield "schedule", Finding(text, form == "cosine" and not constant)
    warmup, epochs = (_number(args, name) for name in ("warmup_epochs", "epochs"))
    yield from read_lengths(warmup, epochs, _count_batch(args)).items()


def _read_losses(args: Mapping[str, Any]) -> Iterator[tuple[str, Finding]]:
    smoothing = _number(args, "smoothing")
    is_binary = bool(args.get("bce_loss") or args.get("cosub"))
    if smoothing is not None:
        yield "smoothing", read_number(smoothing, 0.1)
        text = "binary cross-entropy" if is_binary else "cross-entropy"
        yield "label_loss", Finding(text, not is_binary)
    kind, alpha, tau, teacher = _find_distillation(args)
    if kind == "":
        return
    yield from read_distillation(kind, alpha, tau).items()
    if kind == "none":
        yield "teacher", Finding("no teacher", False)
    elif teacher:
        yield "teacher", read_teachers([teacher])


def _find_distillation(args: Mapping[str, Any]) -> tuple[str, float, float, str]:
    """Return kind, weight, temperature and teacher; "" for a kind that is not recorded."""
    if _is_deits(args):
        alpha, tau = (_number(args, f"distillation_{name}") or 0.0 for name in ("alpha", "tau"))
        kind = _text(args, "distillation_type")
        return kind if kind in KINDS else "", alpha, tau or 1.0, _text(args, "teacher_model")
    teacher = _text(args, "kd_model_name")
    if teacher in _NONE:
        # older versions of timm have no distillation
        return ("none" if "smoothing" in args else ""), 0.0, 1.0, ""
    is_token = args.get("kd_distill_type") == "token"
    kind = _text(args, "kd_token_distill_type") if is_token else "soft"
    share = _find_share(args)
    return kind if kind in KINDS else "", share, _number(args, "kd_temperature") or 1.0, teacher


def _find_share(args: Mapping[str, Any]) -> float:
    """Return the share of the teacher's loss in timm's sum, whose weights are 1 by default."""
    weights = [_number(args, f"{name}_loss_weight") for name in ("distill", "task")]
    distill, task = (1.0 if weight is None else weight for weight in weights)
    return distill / ((distill + task) or 1)


def _read_samples(args: Mapping[str, Any]) -> Iterator[tuple[str, Finding]]:
    """Yield the findings of the plan that these arguments describe, as far as they exist."""
    with contextlib.suppress(ValueError, TypeError):
        found = read_plan(_build_spec(args))
        if _number(args, "reprob") is not None and _text(args, "remode"):
            yield "erasing", found["erasing"]
        if all(_number(args, name) is not None for name in _MIX):
            yield from ((name, found[name]) for name in ("mixup", "cutmix"))
    if isinstance(args.get("aa", 0), str | None) or args.get("ThreeAugment") is True:
        yield "rand_augment", _read_operations(args)
    if _is_deits(args):
        crop = read_plan(PlanSpec(simple_crop=bool(args.get("src"))))["crop_and_flip"]
        yield "crop_and_flip", crop
    yield from _read_copies(args)


def _build_spec(args: Mapping[str, Any]) -> PlanSpec:
    found = {name: _number(args, name) for name in ("reprob", *_MIX)}
    changes: dict[str, Any] = {name: value for name, value in found.items() if value is not None}
    if _text(args, "remode"):
        changes["remode"] = _text(args, "remode")
    if args.get("cutmix_minmax"):
        changes["cutmix_minmax"] = tuple(args["cutmix_minmax"])
    return PlanSpec(**changes)


def _read_operations(args: Mapping[str, Any]) -> Finding:
    if args.get("ThreeAugment"):
        return Finding("3-Augment", False)
    text = _text(args, "aa")
    if text in _NONE:
        jitter = _number(args, "color_jitter")
        return Finding(f"none, colour jitter {jitter:g}" if jitter else "none", False)
    try:
        return read_plan(PlanSpec(**parse_rand_augment(text)))["rand_augment"]
    except ValueError:
        return Finding(text, False)


def _read_copies(args: Mapping[str, Any]) -> Iterator[tuple[str, Finding]]:
    if all(isinstance(args.get(name), bool) for name in ("repeated_aug", "distributed")):
        yield (
            "repeated_augmentation",
            read_repeats(3 if args["repeated_aug"] and args["distributed"] else 1),
        )
    copies = _number(args, "aug_repeats")
    if copies is not None:
        yield "repeated_augmentation", read_repeats(max(1, int(copies)))


def _read_model(args: Mapping[str, Any], depth: int) -> Iterator[tuple[str, Finding]]:
    # timm's default is None
    rate = 0.0 if args.get("drop_path", "") is None else _number(args, "drop_path")
    name = _text(args, "model")
    if rate is not None and name:
        # deit's DeiT III has one rate for all blocks
        constant = "_LS" in name or (_is_deits(args) and "deit3" in name)
        steps = max(1, depth - 1)
        rates = [rate if constant else rate * number / steps for number in range(depth)]
        yield "drop_path", judge_drop_path(rates or [0.0, rate])
    drop = _number(args, "drop")
    if drop is not None:
        yield "dropout", Finding(f"up to {drop:g}" if drop else "none", drop == 0)
    size = _number(args, "input_size") or _number(args, "img_size")
    if size:
        yield "resolution", Finding(f"{size:g} px", size == 224)
