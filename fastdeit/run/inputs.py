"""The inputs of a run that decide a loss in addition to its settings, with their hashes: recorded
at its start and in every checkpoint, compared when it is resumed or replayed. docs/resume.md has
the table."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from fastdeit.checkpoint.files import read_json
from fastdeit.config.schema import Config
from fastdeit.data.index import Index
from fastdeit.distributed.collectives import check_same_on_ranks
from fastdeit.models.sources import locate_weights, name_revision
from fastdeit.models.teachers.ensemble import LiveTeacher
from fastdeit.models.teachers.identity import combine_facts, find_files, identify_files
from fastdeit.models.weights import hash_weights
from fastdeit.plan.plan import Plan
from fastdeit.storage.file_hash import hash_file
from fastdeit.storage.run_folder import RunFolder
from fastdeit.storage.tensor_files import hash_tensors
from fastdeit.teacher_cache.reader import CachedTeacher

Inputs = dict[str, Any]
"""Facts that decide a loss in addition to the settings, with hashes, as `describe_inputs` returns
them."""

_NOT_COMPARED = {"path", "file"}
"""Facts that are only for messages; file: the SHA-256 of a file that is identified by its
tensors."""
_HASHES = {"weights", "program", "sha256"}
"""Facts that identify an input, whatever its path."""
_HASH_DIGITS = 64
_SHOWN = 12  # digits of a hash in a message


def describe_samples(plan: Plan, index: Index, batch_size: int, pixels: str) -> dict[str, Any]:
    """Return everything that determines the samples of a step; pixels: backend and decoder."""
    return {
        "plan": plan.fingerprint(),
        "data set": index.fingerprint(),
        "batch size": batch_size,
        "augmentation": pixels,
    }


def describe_inputs(
    config: Config,
    samples: Mapping[str, Any],
    teacher: LiveTeacher | None,
    cached_teacher: CachedTeacher | None,
    model: nn.Module,
) -> Inputs:
    """Return what decides a loss in addition to the settings, as JSON values: samples, teacher, the
    file of --finetune, and the initial weights.

    model: as built, before DeepSpeed partitions it. Paths are for messages and never compared.
    """
    path = config.model.finetune
    return {
        "samples": dict(samples),
        "teacher": _describe_teacher(config, teacher, cached_teacher),
        "teacher output": _describe_output(config, cached_teacher),
        "finetune": _describe_finetune(path) if path else None,
        "initial weights": {"sha256": hash_tensors(model.state_dict()), "path": "as built"},
    }


def _describe_teacher(
    config: Config, teacher: LiveTeacher | None, cached_teacher: CachedTeacher | None
) -> dict[str, Any] | None:
    """Return the identity of the teacher, live or recorded, without its precision."""
    if cached_teacher is not None:
        facts = dict(cached_teacher.cache.manifest.facts.get("teacher", {}))
        facts.pop("precision", None)
        return facts | {"path": config.distill.cache}
    if teacher is None:
        return None
    return teacher.identity() | _describe_sources(config.distill.teachers)


def _describe_sources(sources: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return where the weights of teachers are, and the hashes of their files."""
    named = []
    for name, source in sources:
        is_file = bool(source) and locate_weights(source).is_file()
        file = {"file": hash_weights(source)} if is_file else {}
        named.append({"path": name_revision(source) if source else name} | file)
    return combine_facts(named) | {"path": ", ".join(facts["path"] for facts in named)}


def _describe_output(config: Config, cached_teacher: CachedTeacher | None) -> dict[str, str] | None:
    """Return the form of the teacher's output that the loss reads: a cache of only the largest
    logits gives another soft loss."""
    distill = config.distill
    if distill.distillation_type == "none":
        return None
    if distill.distillation_type == "hard" or cached_teacher is None:
        form = "class" if distill.distillation_type == "hard" else "logits"
        return {"form": form, "path": distill.cache or "the live teacher"}
    return {"form": cached_teacher.cache.manifest.description, "path": distill.cache}


def name_teacher_output(inputs: Inputs) -> str:
    """Return the form of the teacher's output that the loss reads; "" without a teacher."""
    return str((inputs["teacher output"] or {}).get("form", ""))


def _describe_finetune(path: str) -> dict[str, str]:
    return {"sha256": hash_weights(path), "path": name_revision(path)}


def describe_checkpoint(path: Path) -> dict[str, str]:
    """Return the initial weights of a run that starts from a checkpoint of another run."""
    return {"sha256": hash_file(path / "manifest.json"), "path": str(path)}


def check_same_inputs(recorded: Inputs, now: Inputs, source: Path) -> list[str]:
    """Raise ValueError if the teacher or the file of --finetune is not the recorded one, naming
    both; return notes on what is not recorded, and on another form of the teacher's output."""
    changed = list_changed_inputs(recorded, now, ("teacher", "finetune"))
    if changed:
        raise ValueError(f"{source}: belongs to a run with other inputs: {'; '.join(changed)}")
    notes = list_unknown_inputs(recorded, now, ("teacher", "finetune"), source)
    for line in list_changed_inputs(recorded, now, ("teacher output",)):
        notes.append(f"{line}: from here on the losses are others")
    return notes


def list_changed_inputs(then: Inputs, now: Inputs, names: Sequence[str]) -> list[str]:
    """Return a line for each of these inputs that differs now, naming both; what is not recorded is
    not compared."""
    lines = [_compare(name, then[name], now[name]) for name in names if name in then]
    return [line for line in lines if line]


def list_unknown_inputs(then: Inputs, now: Inputs, names: Sequence[str], source: Path) -> list[str]:
    """Return a note for each of these inputs that cannot be compared with the recorded one: older
    versions recorded no hash, or another one."""
    unknown = []
    for name in names:
        facts, recorded = now[name] or {}, then.get(name) or {}
        if _HASHES & facts.keys() and not _HASHES & facts.keys() & recorded.keys():
            unknown.append(name)
    hint = "an older version recorded no hash of it"
    return [f"nothing shows whether {source} had the same {name}: {hint}" for name in unknown]


def _compare(name: str, then: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> str:
    """Return how an input differs now, "" if it does not; only facts that both have are
    compared."""
    if then is None or now is None:
        same = then is now
        changed = []
    else:
        known = then.keys() - _NOT_COMPARED
        changed = [key for key in then if key in known and now.get(key, then[key]) != then[key]]
        same = not changed
    return "" if same else f"{name}: {_show(then, changed)}, now {_show(now, changed)}"


def _show(facts: Mapping[str, Any] | None, names: Sequence[str]) -> str:
    """Return the path of an input, and those of its facts that differ."""
    if facts is None:
        return "none"
    shown = [f"{name} {_shorten(facts[name])}" for name in names]
    path = str(facts.get("path"))
    return f"{path} ({', '.join(shown)})" if shown else path


def _shorten(value: Any) -> Any:
    if isinstance(value, list):
        return [_shorten(one) for one in value]
    is_hash = isinstance(value, str) and len(value) == _HASH_DIGITS
    return value[:_SHOWN] if is_hash else value


def keep_facts(recorded: Inputs, now: Inputs) -> None:
    """Add to the teacher's facts what was recorded of it before: a cache of an older version has
    another hash than the live teacher, and both will be compared later."""
    before = recorded.get("teacher")
    if before and now["teacher"]:
        now["teacher"] = before | now["teacher"]


def read_inputs(folder: RunFolder) -> Inputs:
    """Return what the folder records of the run's inputs; nothing if an older version wrote it.
    Raise ValueError for a damaged file, OSError."""
    if not folder.inputs.is_file():
        return {}
    try:
        return _check_form(read_json(folder.inputs), folder.inputs)
    except ValueError as error:
        cure = "without the file, nothing is compared at the start; checkpoints have a copy"
        raise ValueError(f"{error}; {cure}") from None


def take_inputs(state: Mapping[str, Any], path: Path) -> Inputs:
    """Return the inputs in the state of the checkpoint `path`; nothing if an older version wrote
    it. Raise ValueError for anything else."""
    return _check_form(state.get("inputs", {}), path)


def _check_form(inputs: Any, path: Path) -> Inputs:
    facts = list(inputs.values()) if isinstance(inputs, dict) else [0]
    if not all(one is None or isinstance(one, dict) for one in facts):
        raise ValueError(f"{path}: damaged: inputs must be mappings of facts by name")
    return dict(inputs)


def check_same_inputs_everywhere(inputs: Inputs) -> None:
    """Raise ValueError on every rank unless all have the teacher, the file of --finetune and the
    initial weights of rank 0. A collective."""
    facts: dict[str, Any] = {}
    for name in ("teacher", "teacher output", "finetune", "initial weights"):
        for key, value in (inputs[name] or {}).items():
            if key not in _NOT_COMPARED:
                facts[f"{name} {key}"] = _shorten(value)
    check_same_on_ranks(facts)


STEP_COUNT = ("data set", "batch size")
"""The samples' facts that decide which images a step counts."""


def check_same_samples(
    state: Mapping[str, Any], now: Mapping[str, Any], names: Iterable[str], path: Path
) -> None:
    """Raise ValueError naming the first of these facts that differs between the samples of a
    checkpoint's state and this run's."""
    # older versions had the fingerprints in the state itself
    recorded = take_inputs(state, path).get("samples", state)
    for name in names:
        if recorded.get(name) != now[name]:
            raise ValueError(
                f"{path}: was saved with another {name}: {recorded.get(name)}, now {now[name]}"
            )


def compare_files(config: Config, recorded: Inputs) -> dict[str, str]:
    """Return the fields that name a file whose hash is recorded, with the difference in words, or
    "" if it is the same file. A file that does not exist is not compared."""
    changes: dict[str, str] = {}
    teacher, finetune = recorded.get("teacher"), recorded.get("finetune")
    sources = config.distill.teachers if config.distill.needs_teacher else []
    files = find_files(sources)
    if teacher and files:
        now = identify_files(files) | {"path": _describe_sources(sources)["path"]}
        if now.keys() & teacher.keys() > {"path"}:
            line = _compare("--teacher-path", teacher, now)
            changes |= {"teacher_path": line, "pretrained_teacher": ""}
    path = config.model.finetune
    if finetune and locate_weights(path).is_file():
        changes["finetune"] = _compare("--finetune", finetune, _describe_finetune(path))
    return changes
