"""Weight files: safe reading of any checkpoint, and the fit of its weights to a student.

Nothing here runs code from a file: it is read as safetensors, or by torch's `weights_only`
unpickler. Known wrappers around the plain state dict: deit's {"model": ...}, timm's
{"state_dict": ...}; with an EMA beside it, {"model_ema": ...} or {"state_dict_ema": ...}.
"""

import argparse
import math
import mmap
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed

from fastdeit.models.sizes import StateDict, has_qkv_bias
from fastdeit.models.sources import locate_weights
from fastdeit.models.student import Student
from fastdeit.storage.file_hash import hash_file
from fastdeit.storage.tensor_files import read_tensors

_MAGIC = (b"PK", b"\x80")
"""First bytes of the two forms of torch.save: a zip archive, a pickle."""
WRAPPERS = ("state_dict", "model")
"""The keys of the state dict in training checkpoints of timm and deit."""
EMA_WRAPPERS = ("state_dict_ema", "model_ema")
"""The keys of the EMA's state dict in training checkpoints of timm and deit."""
HEADS = ("head", "head_dist")
"""The names of the student's heads."""
_WRAPPED = re.compile(r"^((module|_orig_mod)\.)+|\b(_orig_mod|_checkpoint_wrapped_module)\.")
"""The prefixes that DDP, torch.compile and activation checkpointing add to the names of what they
wrap: the network, or a block of it."""
_NAMED = 3  # classes that a message names


def read_weights(path: str | Path, *, ema: bool = False) -> tuple[StateDict, dict[str, str]]:
    """Read a checkpoint's state dict and its safetensors metadata (empty for a .pth), on the CPU.

    path: a .safetensors or torch.save file, or another source (`locate_weights`). ema: the EMA in
    the same folder, or in the same training checkpoint of deit or timm. Raises ValueError if the
    file is missing or damaged, has no state dict, or has pickled classes.
    """
    path = locate_weights(path, ema=ema)
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}")
    if path.suffix != ".safetensors":
        return _unwrap(_read_pickle(path), path, EMA_WRAPPERS if ema else WRAPPERS), {}
    if ema and "ema" not in path.stem:
        raise ValueError(f"{path}: holds no EMA, which has a file of its own in a run folder")
    tensors, metadata = read_tensors(path)
    return _name_as_timm(tensors), metadata


def read_arguments(path: Path) -> dict[str, Any]:
    """Return the command line that a training checkpoint of deit or timm holds, by argument; {} if
    a file has none. Raises ValueError as `read_weights` does."""
    content = {} if path.suffix == ".safetensors" else _read_pickle(path)
    found = content.get("args") if isinstance(content, dict) else None
    return dict(vars(found)) if isinstance(found, argparse.Namespace) else {}


def _read_pickle(path: Path) -> object:
    check_expansion(path)
    # the training checkpoints of deit and timm hold their command line as a Namespace, which is
    # plain data
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            # a bad file can cause any error in the unpickler, from IndexError to MemoryError
            raise _refusal(path, _explain(path, error)) from error


def _explain(path: Path, error: Exception) -> str:
    """Return the reason why torch's unpickler refuses a file; its own text advises to run the code
    in it."""
    with path.open("rb") as file:
        if not file.read(2).startswith(_MAGIC):
            return "it is neither a safetensors file nor one of torch.save"
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    if named:
        return f"it names {named[1]}, which is code; save its state dict as safetensors"
    return f"it is damaged ({type(error).__name__}), or no file of torch.save"


def _refusal(path: Path, reason: str) -> ValueError:
    return ValueError(f"{path}: does not load as plain weights: {reason}")


def check_expansion(path: Path) -> None:
    """Raise ValueError for a file that would need more memory than its own size.

    torch.save does not compress, and no state dict needs `bytearray`, the one call allowed by the
    unpickler that allocates memory by a number in the file.
    """
    size = path.stat().st_size
    if size and _contains(path, b"\nbytearray\n"):
        raise _refusal(path, "it makes byte arrays")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except zipfile.BadZipFile:
        return  # torch's older form, or no weights at all
    claimed = sum(entry.file_size for entry in entries)
    if claimed > size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise _refusal(path, f"compressed, {claimed:,} bytes in {size:,}")


def _contains(path: Path, data: bytes) -> bool:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ).find(data) >= 0


def _unwrap(content: object, path: Path, wrappers: Sequence[str]) -> StateDict:
    found = content
    for wrapper in wrappers:
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if found is content and wrappers == EMA_WRAPPERS:
        raise ValueError(f"{path}: holds no EMA, neither under {' nor '.join(wrappers)}")
    tensors = list(found.values()) if isinstance(found, dict) else []
    if not tensors or not all(isinstance(value, torch.Tensor) for value in tensors):
        where = f"neither plain nor under {' or '.join(wrappers)}"
        raise ValueError(f"{path}: holds no state dict, {where}")
    assert isinstance(found, dict)
    _check_stored(found, path)
    return _name_as_timm(found)


def _name_as_timm(state: StateDict) -> StateDict:
    """Return a state dict with timm's names: without those of wrappers, and where deit's DeiT III
    has `blocks.0.gamma_1`, timm has `blocks.0.ls1.gamma`."""
    plain = {_WRAPPED.sub("", key): value for key, value in state.items()}
    deit3 = re.compile(r"^(blocks\.\d+)\.gamma_([12])$")
    return {deit3.sub(r"\1.ls\2.gamma", key): value for key, value in plain.items()}


def _check_stored(tensors: StateDict, path: Path) -> None:
    """Raise ValueError for tensors with more elements than the file has bytes for."""
    size = path.stat().st_size
    storages = {}
    for key, value in tensors.items():
        storage = value.untyped_storage()
        plain = value.device.type == "cpu" and value.layout is torch.strided
        if not plain or value.nbytes > storage.nbytes():
            raise _refusal(path, f"{key} has more elements than it stores")
        storages[storage.data_ptr()] = storage.nbytes()
    total = sum(storages.values())
    if total > size:
        raise _refusal(path, f"{total:,} bytes of tensors in {size:,}")


def hash_weights(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes; of model.safetensors for a run folder."""
    return hash_file(locate_weights(path))


def fit_student_weights(model: Student, state: StateDict, *, antialias: bool = True) -> list[str]:
    """Load a state dict into a student in place; return a note for everything that was changed.

    The dict itself is not changed. The position embedding is resized if the resolution differs:
    with antialias by timm's filter, else by torch's plain bicubic one, as in deit; both also differ
    where the grid grows. Heads with another number of classes stay as initialised. Raises
    ValueError if the rest does not fit (naming the first few tensors).
    """
    own = model.state_dict()
    state = dict(state)
    notes = fit_heads(own, state, HEADS) + _resize_positions(model, own, state, antialias)
    if has_qkv_bias(state) and not has_qkv_bias(own):
        advice = "build it with qkv_bias=True"
        raise ValueError(f"the checkpoint has qkv biases and the student has none: {advice}")
    check_match(own, state, "the student")
    model.load_state_dict(state)
    return notes


def fit_heads(
    own: StateDict,
    state: StateDict,
    heads: Sequence[str],
    trained: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
) -> list[str]:
    """Replace each head in `state` that is for other classes by the model's own, and sort the rows
    of a head with the same classes in another order; return a note on each.

    heads: names of modules; trained: names of the classes of the heads in `state`, None: only their
    number counts; classes: names of the model's classes.
    """
    notes = []
    for head in heads:
        parts = [key for key in (f"{head}.weight", f"{head}.bias") if key in own and key in state]
        if not parts:
            continue
        other = _describe_other_classes(own[parts[0]], state[parts[0]], trained, classes)
        if other:
            notes.append(f"{head} left as initialised: {other}")
            state |= {key: own[key] for key in parts}
        elif trained is None and classes is not None:
            notes.append(f"{head} kept: the file has as many classes, but does not name them")
        elif trained is not None and classes is not None and list(trained) != list(classes):
            notes.append(f"{head}: rows sorted, as the file has the classes in another order")
            rows = [trained.index(name) for name in classes]
            state |= {key: state[key][rows] for key in parts}
    return notes


def _describe_other_classes(
    own: torch.Tensor,
    found: torch.Tensor,
    trained: Sequence[str] | None,
    classes: Sequence[str] | None,
) -> str:
    """Return how the classes of a head in a file differ from those of the model; "" if they do
    not."""
    if len(found) != len(own):
        return f"{len(found)} classes in the file, {len(own)} here"
    if trained is None:
        return ""
    if len(trained) != len(found):
        return f"the file names {len(trained)} classes, and its head has {len(found)}"
    absent = sorted(set(classes or ()) - set(trained))
    return f"the file is for other classes, without {', '.join(absent[:_NAMED])}" if absent else ""


def _resize_positions(
    model: Student, own: StateDict, state: StateDict, antialias: bool
) -> list[str]:
    """Resize the position embedding in `state` to the model's grid, if the tokens are the same."""
    positions = state.get("pos_embed")
    same_tokens = all((name in state) == (name in own) for name in ("dist_token", "reg_token"))
    if positions is None or not same_tokens or positions.shape[1] == own["pos_embed"].shape[1]:
        return []
    prefix = model.num_prefix_positions
    grid = model.grid_size
    patches = max(0, positions.shape[1] - prefix)
    before = math.isqrt(patches)
    if before**2 != patches:
        return []  # of another model: `check_match` names it
    state["pos_embed"] = resample_abs_pos_embed(
        positions, [grid, grid], num_prefix_tokens=prefix, antialias=antialias
    )
    return [f"position embedding resized from {before} x {before} to {grid} x {grid} patches"]


def check_match(own: StateDict, state: StateDict, what: str) -> None:
    """Raise ValueError, naming the first few tensors, if names or shapes of two state dicts differ.

    what: the model that `own` belongs to, for the message.
    """
    problems = [f"{key} is missing" for key in own if key not in state]
    problems += [f"{key} is not {what}'s" for key in state if key not in own]
    problems += [
        f"{key} is {tuple(state[key].shape)}, not {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"the checkpoint does not fit {what}: {'; '.join(problems[:3])}{more}")
