"""An audit, built from a run folder, from settings, or from a checkpoint of ours, deit or timm.

The findings come from what is built as a run builds it, on the CPU and without data: the student,
the plan's distributions, the optimizer, the schedule, the loss; and from the tensors of weights.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import nn

from fastdeit.audit.arguments import read_arguments
from fastdeit.audit.findings import UNSEEN, Audit, Finding, Findings, judge
from fastdeit.audit.network import list_blocks, read_initial_weights, read_network
from fastdeit.audit.samples import read_plan
from fastdeit.audit.teacher import read_teachers
from fastdeit.audit.training import (
    STEPS_PER_EPOCH,
    read_clipping,
    read_criterion,
    read_optimizer,
    read_schedule,
)
from fastdeit.config.changes import read_settings
from fastdeit.config.schema import Config
from fastdeit.distributed.place import find_world
from fastdeit.inference.load import load_model
from fastdeit.models.build import build_model, follow_weights, list_heads
from fastdeit.models.network import build_network, find_architecture, read_weight_file
from fastdeit.models.sizes import SIZES
from fastdeit.models.sources import fetch_weights, find_run, locate_weights
from fastdeit.models.weights import read_arguments as read_recorded_arguments
from fastdeit.plan.build import build_spec
from fastdeit.storage.json_values import read_json_file
from fastdeit.storage.run_folder import RunFolder
from fastdeit.teacher_cache.format import read_manifest
from fastdeit.training.build import (
    build_criterion,
    build_deepspeed_config,
    build_groups,
    build_optimizer,
    build_rates,
)
from fastdeit.training.zero.flat import LossModule

_CLASSES = tuple(str(number) for number in range(1000))
"""The classes of the model that is built: no item of the checklist depends on them."""

_OF_WEIGHTS = frozenset(
    "distillation_token positions pre_norm qkv_bias size layer_scale heads_at_inference".split()
)
"""The items that the tensors of a file decide."""


class _Reading(NamedTuple):
    """Findings, and notes on what could not be read."""

    findings: Findings
    notes: tuple[str, ...] = ()


def audit_source(source: str | Path, *, ema: bool = False, model: str = "") -> Audit:
    """Audit a run folder, or weights by any name that `load_model` takes; arguments and errors as
    there. Weights in a run folder are audited with its settings."""
    run = find_run(source)
    if run is None:
        return _audit_checkpoint(source, ema=ema, model=model)
    return _audit_run(run, source, ema=ema)


def audit_run(folder: Path) -> Audit:
    """Audit a run folder, also of a run that is still training. Raises ValueError or OSError for
    settings or weights that cannot be read."""
    return _audit_run(RunFolder(folder), folder, ema=False)


def audit_settings(config: Config, subject: str) -> Audit:
    """Audit the run that these settings start; subject: their name."""
    reading = _read_settings(config, _find_teachers(config))
    return Audit(subject, "settings", judge(reading.findings), reading.notes)


def _audit_run(run: RunFolder, source: str | Path, *, ema: bool) -> Audit:
    config = read_settings(run.config, "RUN")
    weights = locate_weights(source, ema=ema)
    teachers = _find_recorded_teachers(run) or _find_teachers(config)
    if not weights.is_file():
        built = _read_settings(config, teachers)
        notes = (*built.notes, f"{run}: no weights yet")
        return Audit(str(source), "run", judge(built.findings), notes)
    built = _read_settings(_follow_stored(config, weights), teachers)
    stored = _read_stored(config, weights)
    findings = {**built.findings, **stored.findings}
    if config.model.finetune:
        findings["initial_weights"] = _describe_finetune(config)
    # only the model that is built shows whether its position embedding is trained
    if _count(built.findings) == _count(stored.findings):
        findings["positions"] = built.findings["positions"]
    return Audit(str(source), "run", judge(findings), (*built.notes, *stored.notes))


def _count(findings: Findings) -> str:
    """Return the number of positions, as the finding on them begins."""
    return findings.get("positions", UNSEEN).text.partition(",")[0]


def _follow_stored(config: Config, weights: Path) -> Config:
    """Return the settings that build the model of a run: where it began with weights of --finetune,
    its own are read in their place, of which the rest follows."""
    if not config.model.finetune:
        return config
    return config.replace(model={"finetune": str(weights)})


def _read_stored(config: Config, weights: Path) -> _Reading:
    """Return the findings on the weights of a run."""
    file = read_weight_file(weights)
    name = find_architecture(weights, file)
    network = build_network(name, file, size=config.data.eval_input_size or config.data.input_size)
    note = () if config.model.model in ("", name) else (f"{weights}: the weights of {name}",)
    return _Reading(_read_structure(network, name), note)


def _read_structure(network: nn.Module, name: str) -> Findings:
    found = read_network(network, name, list_heads(network), trained=True)
    return {item: finding for item, finding in found.items() if item in _OF_WEIGHTS}


def _audit_checkpoint(source: str | Path, *, ema: bool, model: str) -> Audit:
    path = fetch_weights(source, ema=ema)
    args = read_recorded_arguments(path)
    loaded = load_model(source, ema=ema, model=model or _find_name(args))
    findings = {
        **read_arguments(args, len(list_blocks(loaded.model))),
        **_read_structure(loaded.model, loaded.name),
    }
    if "pos_embed" in loaded.model.state_dict():
        findings["resolution"] = _read_resolution(loaded.view.size)
    note = "training: as the command line in the file, its args, records it"
    if not args:
        note = "training: the file holds no command line of deit or timm (args)"
    return Audit(str(source), "checkpoint", judge(findings), (f"model: {loaded.name}", note))


def _find_name(args: Mapping[str, Any]) -> str:
    """Return the architecture that a recorded command line names, if it is known by that name."""
    name = args.get("model")
    return name if isinstance(name, str) and (name in SIZES or timm.is_model(name)) else ""


def _read_resolution(side: int) -> Finding:
    return Finding(f"{side} px", side == 224)


def _read_settings(config: Config, teachers: Sequence[str] | None) -> _Reading:
    """Return the findings on the run that settings start; teachers: their names, None if those are
    not known."""
    findings = {
        **read_plan(build_spec(config)),
        **read_criterion(build_criterion(config)),
        "teacher": _read_teacher(config, teachers),
        "resolution": _read_resolution(config.data.input_size),
    }
    model, notes = _build_model(config)
    findings |= _read_training(config, model)
    if model is not None:
        findings["initial_weights"] = read_initial_weights(model)
        if config.model.finetune:
            findings["initial_weights"] = _describe_finetune(config)
        name = config.model.model or type(model).__name__
        findings |= read_network(model, name, list_heads(model), trained=False)
    return _Reading(findings, notes)


def _describe_finetune(config: Config) -> Finding:
    return Finding(f"those of {config.model.finetune}", False)


def _read_teacher(config: Config, teachers: Sequence[str] | None) -> Finding:
    if config.distill.distillation_type == "none":
        return Finding("no teacher", False)
    return Finding("", None) if teachers is None else read_teachers(teachers)


def _build_model(config: Config) -> tuple[nn.Module | None, tuple[str, ...]]:
    """Build the model of settings; None, and a note, where its weights do not exist."""
    try:
        config = follow_weights(config)
        if not config.model.model:
            return None, ("the model is that of --finetune, which must be named to see it",)
        # timm draws weights from torch's global generator
        with torch.random.fork_rng(devices=[]):
            return build_model(config, _CLASSES)[0], ()
    except (ValueError, OSError) as error:
        return None, (f"the model cannot be built: {error}",)


def _read_training(config: Config, model: nn.Module | None) -> Findings:
    """Return the findings on optimizer and schedule; model None: only those that need no model."""
    world = find_world("cpu", 0, 1)
    groups = [{}] if model is None else build_groups(config, model)
    # a file of the user's cannot change what flags decide
    settings = build_deepspeed_config(config.replace(run={"deepspeed_config": ""}), world)
    schedule = build_rates(config, groups, STEPS_PER_EPOCH)
    lag = getattr(schedule, "lag", 0)
    batch_size = settings["train_batch_size"]
    found = {
        **read_schedule(schedule, batch_size, config.optim.epochs, lag),
        "clip_grad": read_clipping(settings["gradient_clipping"]),
    }
    if model is None:
        return found
    optimizer = build_optimizer(config, world, LossModule(model, groups))
    return found | read_optimizer(optimizer, model)


def _find_teachers(config: Config) -> Sequence[str] | None:
    """Return the names of the teachers that settings name: of the cache, if they have one."""
    try:
        if config.distill.cache:
            teacher = read_manifest(Path(config.distill.cache)).facts.get("teacher", {})
            return _list_names(teacher)
        pairs = config.distill.teachers
        return [name or find_architecture(path, read_weight_file(path)) for name, path in pairs]
    except (ValueError, OSError):
        return None


def _find_recorded_teachers(run: RunFolder) -> Sequence[str] | None:
    """Return the names of the teachers that a run has recorded; None where it has recorded none."""
    try:
        inputs = read_json_file(run.inputs)
    except (ValueError, OSError):
        return None
    return _list_names(inputs.get("teacher") if isinstance(inputs, dict) else None)


def _list_names(facts: Any) -> Sequence[str] | None:
    """Return the names in the identity of one teacher or several."""
    found = facts.get("name") if isinstance(facts, Mapping) else None
    names = found if isinstance(found, list) else [found]
    return [name for name in names if isinstance(name, str)] or None
