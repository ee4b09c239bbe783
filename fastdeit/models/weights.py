"""Weights from files: reading any checkpoint safely, and fitting one to a student.

Nothing here runs code out of a file: safetensors, or torch's `weights_only` unpickler. Known
wrappers around the plain state dict: deit's {"model": ...}, timm's {"state_dict": ...}.
"""

import argparse
import math
import mmap
import re
import zipfile
from pathlib import Path

import torch
from timm.layers import resample_abs_pos_embed

from fastdeit.models.student import SIZES, Student, build_student
from fastdeit.storage.file_hash import hash_file
from fastdeit.storage.run_folder import RunFolder
from fastdeit.storage.tensor_files import read_tensors

WRAPPERS = ("state_dict", "model")
StateDict = dict[str, torch.Tensor]


def read_weights(path: str | Path) -> tuple[StateDict, dict[str, str]]:
    """Read a checkpoint's state dict and its safetensors metadata (empty for a .pth), on the CPU.

    path: a .safetensors or torch.save file, or a run folder, whose student.safetensors is taken.
    Raises ValueError when the file is missing, damaged, holds no state dict, or pickled classes.
    """
    path = Path(path)
    path = RunFolder(path).student if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}")
    if path.suffix == ".safetensors":
        return read_tensors(path)
    return _unwrap(_read_pickle(path), path), {}


def _read_pickle(path: Path) -> object:
    _check_expansion(path)
    # the training checkpoints of deit and timm carry their command line as a Namespace, which is
    # plain data
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (
            Exception
        ) as error:  # whatever a file can drive the unpickler to, from IndexError to MemoryError
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"{path} does not load as plain weights; save it as safetensors: {reason}"
            ) from error


def _check_expansion(path: Path) -> None:
    """Raises ValueError for a file that would take up more memory than its own size.

    torch.save compresses nothing, and no state dict needs the one call the unpickler allows that
    makes memory out of a number.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if (
            size
            and mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ).find(b"\nbytearray\n") >= 0
        ):
            raise ValueError(f"{path} does not load as plain weights: it makes byte arrays")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except zipfile.BadZipFile:
        return  # torch's older form, or no weights at all
    claimed = sum(entry.file_size for entry in entries)
    if claimed > size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError(
            f"{path} does not load as plain weights: compressed, {claimed:,} bytes in {size:,}"
        )


def _unwrap(content: object, path: Path) -> StateDict:
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(v, torch.Tensor) for v in content.values())
    ):
        raise ValueError(
            f"{path} holds no state dict, neither plain nor under {' or '.join(WRAPPERS)}"
        )
    _check_stored(content, path)
    return {key.removeprefix("module."): value for key, value in content.items()}


def _check_stored(tensors: StateDict, path: Path) -> None:
    """Raises ValueError for tensors with more elements than the file has bytes for."""
    size, storages = path.stat().st_size, {}
    for key, value in tensors.items():
        plain = value.device.type == "cpu" and value.layout is torch.strided
        if not plain or value.nbytes > value.untyped_storage().nbytes():
            raise ValueError(
                f"{path} does not load as plain weights: {key} has more elements than it stores"
            )
        storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    if sum(storages.values()) > size:
        raise ValueError(
            f"{path} does not load as plain weights: {sum(storages.values()):,} bytes of tensors in {size:,}"
        )


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes; of student.safetensors for a run folder."""
    path = Path(path)
    return hash_file(RunFolder(path).student if path.is_dir() else path)


def has_qkv_bias(state: StateDict) -> bool:
    """Whether a DeiT checkpoint's qkv projections have biases, as all published ones do."""
    return "blocks.0.attn.qkv.bias" in state


def student_shape(state: StateDict, metadata: dict[str, str]) -> dict[str, object]:
    """The keywords of `Student` that a DeiT state dict implies.

    Everything but the number of heads is in the tensors' shapes; that one comes from the metadata's
    num_heads, else from the name in its model, else it is left out. Raises ValueError when the
    state dict is not a DeiT's.
    """
    axes = {
        "cls_token": 3,
        "pos_embed": 3,
        "patch_embed.proj.weight": 4,
        "blocks.0.mlp.fc1.weight": 2,
        "head.weight": 2,
    }
    missing = [
        key
        for key, count in axes.items()
        if key not in state or state[key].ndim != count or not state[key].numel()
    ]
    if missing:
        raise ValueError(f"not a DeiT checkpoint: it has no {', '.join(missing)} as a DeiT has it")
    patch_size = state["patch_embed.proj.weight"].shape[-1]
    distilled = "dist_token" in state
    num_patches = state["pos_embed"].shape[1] - (2 if distilled else 1)
    shape: dict[str, object] = {
        "embed_dim": state["cls_token"].shape[-1],
        "depth": len({key.split(".")[1] for key in state if key.startswith("blocks.")}),
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / state["cls_token"].shape[-1],
        "image_size": math.isqrt(num_patches) * patch_size,
        "patch_size": patch_size,
        "num_classes": state["head.weight"].shape[0],
        "distilled": distilled,
        "qkv_bias": has_qkv_bias(state),
    }
    if "num_heads" in metadata:
        heads = metadata["num_heads"]
        if not re.fullmatch(r"[1-9]\d{0,3}", heads):
            raise ValueError(f"not a DeiT checkpoint: it says of itself num_heads {heads[:20]!r}")
        shape["num_heads"] = int(heads)
    elif metadata.get("model") in SIZES:
        shape["num_heads"] = SIZES[metadata["model"]].num_heads
    return shape


def student_from_checkpoint(
    path: str | Path, name: str | None = None, **overrides: object
) -> tuple[Student, list[str]]:
    """Build the student that a checkpoint holds and load it; overrides (image_size, num_classes,
    ...) win.

    name: the student's, when the file does not say it. Returns the student and what was changed on
    the way. Raises ValueError when the name is neither given nor in the file, or the weights do not
    fit.
    """
    state, metadata = read_weights(path)
    name = name or metadata.get("model")
    if name is None:
        raise ValueError(f"{path} does not name its model; name one of {', '.join(SIZES)}")
    shape = {**student_shape(state, metadata), **overrides}
    student = build_student(name, num_classes=shape.pop("num_classes"), **shape)  # type: ignore[arg-type]
    return student, fit_student_weights(student, state)


def load_student_weights(model: Student, path: str | Path) -> list[str]:
    """Load a checkpoint into a student in place; returns a line for everything that was not taken
    as it is.

    The position embedding is resized when the resolution differs, heads of another class count are
    left as initialised. Raises ValueError when the file does not read, or the rest does not fit
    (the first few names are given).
    """
    return fit_student_weights(model, read_weights(path)[0])


def fit_student_weights(model: Student, state: StateDict) -> list[str]:
    """`load_student_weights` from a state dict in memory, which is left as it is."""
    state, notes, own = dict(state), [], model.state_dict()
    for head in ("head", "head_dist"):
        found = state.get(f"{head}.weight")
        if found is not None and f"{head}.weight" in own and found.shape[0] != model.num_classes:
            notes.append(
                f"{head} left as initialised: {found.shape[0]} classes in the file, {model.num_classes} here"
            )
            state |= {f"{head}.{part}": own[f"{head}.{part}"] for part in ("weight", "bias")}
    positions = state.get("pos_embed")
    same_tokens = ("dist_token" in state) == model.distilled
    if positions is not None and same_tokens and positions.shape[1] != own["pos_embed"].shape[1]:
        prefix, grid = model.num_prefix_tokens, model.grid_size
        before = math.isqrt(positions.shape[1] - prefix)
        state["pos_embed"] = resample_abs_pos_embed(
            positions, [grid, grid], num_prefix_tokens=prefix
        )
        notes.append(
            f"position embedding resized from {before} x {before} to {grid} x {grid} patches"
        )
    if has_qkv_bias(state) and not has_qkv_bias(own):
        raise ValueError(
            "the checkpoint has qkv biases and the student has not: build it with qkv_bias=True"
        )
    check_match(own, state, "the student")
    model.load_state_dict(state)
    return notes


def check_match(own: StateDict, state: StateDict, what: str) -> None:
    """Raise ValueError naming the first few tensors in which two state dicts differ; what: whose
    `own` is."""
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
