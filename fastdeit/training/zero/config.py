"""DeepSpeed's settings: what the flags decide, and what a user's own JSON file may add."""

import copy
import difflib
import json
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fastdeit.distributed.world import import_deepspeed
from fastdeit.storage.atomic import read_bounded

MAX_BYTES = 1 << 16
"""The largest size of a user's file, in bytes."""

ALLOWED: dict[str, list[str]] = {
    "": """
        activation_checkpointing comms_logger csv_monitor disable_python_gc dump_state
        flops_profiler memory_breakdown steps_per_print tensorboard timers
        wall_clock_breakdown wandb zero_optimization
    """.split(),
    "zero_optimization": """
        allgather_bucket_size allgather_partitions contiguous_gradients
        ignore_unused_parameters log_trace_cache_warnings offload_optimizer overlap_comm
        reduce_bucket_size reduce_scatter round_robin_gradients stage3_allgather_sequential
        stage3_gather_16bit_weights_on_model_save stage3_max_live_parameters
        stage3_max_reuse_distance stage3_model_persistence_threshold
        stage3_module_granularity_threshold stage3_param_persistence_threshold
        stage3_prefetch_bucket_size stage3_use_all_reduce_for_fetch_params sub_group_size
        use_multi_rank_bucket_allreduce
    """.split(),
    "zero_optimization.offload_optimizer": ["pin_memory"],
    "timers.throughput": ["enabled", "synchronized"],
}
"""The fields that a file may set, by section: they change speed, memory and reports, neither
samples nor results."""

INSTEAD = {
    "train_batch_size": "use --batch-size",
    "train_micro_batch_size_per_gpu": "use --micro-batch",
    "gradient_accumulation_steps": "use --micro-batch",
    "gradient_clipping": "use --clip-grad",
    "bf16": "use --precision",
    "fp16": "use --precision bf16",
    "amp": "use --precision bf16",
    "torch_autocast": "use --precision bf16",
    "optimizer": "use --opt, --lr, --weight-decay, --opt-betas, --opt-eps",
    "scheduler": "it is a cosine: use --lr, --warmup-epochs, --warmup-lr, --min-lr",
    "data_types": "gradients are always summed in fp32",
    "communication_data_type": "gradients are always summed in fp32",
    "zero_optimization.stage": "use --zero-stage",
    "zero_optimization.offload_optimizer": "use --offload-optimizer (state in CPU memory)",
    "zero_optimization.offload_param": "weights stay on the device; use --zero-stage 3",
    "checkpoint": "checkpoints are not DeepSpeed's: use --save-steps, --keep-checkpoints",
}
"""Advice for a field that may not be set in the file, or for the fields below it."""


def deepspeed_config(
    *,
    batch_size: int,
    micro_batch: int,
    grad_accum_steps: int,
    precision: str,
    zero_stage: int,
    clip_grad: float | None,
    offload_optimizer: bool = False,
) -> dict[str, Any]:
    """Return the settings that follow from the flags.

    Gradients are accumulated and reduced in fp32 whatever the precision, and the stage is the
    `safe_stage`. The optimizer is torch's also where it is offloaded: DeepSpeed's own would be
    compiled at the start of the run (0.19.8). DeepSpeed gathers gradients in a buffer on every
    device before it reduces them: 50 million elements, in fp32 200 MB; its default is 2 GB.
    """
    return {
        "train_batch_size": batch_size,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": grad_accum_steps,
        "gradient_clipping": clip_grad or 0.0,
        "bf16": {"enabled": precision == "bf16", "check_grad_overflow": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": {
            "stage": safe_stage(zero_stage, precision),
            "memory_efficient_linear": False,
            "reduce_bucket_size": 50_000_000,
            "offload_optimizer": {"device": "cpu" if offload_optimizer else "none"},
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**62,
        "wall_clock_breakdown": False,
        # its timer would wait for the device twice a micro-batch
        "timers": {"throughput": {"enabled": False}},
    }


def safe_stage(zero_stage: int, precision: str) -> int:
    """Return the stage that runs for the one asked for; the results are the same.

    Stage 0 becomes 1, which skips a step with NaN; stage 1 in bf16 becomes 2, which accumulates in
    fp32 without a full-size gradient buffer on every rank (DeepSpeed 0.19.8).
    """
    return max(zero_stage, 2 if precision == "bf16" else 1)


def add_user_file(ours: dict[str, Any], path: str) -> dict[str, Any]:
    """Return `ours` with the fields of a user's DeepSpeed JSON file added; "auto" there means ours.

    Needs the process group. Raises FileNotFoundError, and ValueError with a message of one line:
    for a file that is not small, plain JSON; for a field that is not `ALLOWED` and differs from
    ours, with what to use instead; for what DeepSpeed itself refuses.
    """
    theirs = _read(path)
    merged = copy.deepcopy(ours)
    zero = theirs.get("zero_optimization")
    if isinstance(zero, dict) and type(zero.get("stage")) is int:
        # as the value of --zero-stage is
        precision = "bf16" if ours["bf16"]["enabled"] else "fp32"
        zero["stage"] = safe_stage(zero["stage"], precision)
    _merge(merged, theirs, "", f"--deepspeed-config: {path}")
    _check_with_deepspeed(merged, path)
    return merged


def _merge(ours: dict[str, Any], theirs: dict[str, Any], section: str, source: str) -> None:
    """Add a section of the file to ours. Raises ValueError as `add_user_file`."""
    allowed = ALLOWED.get(section, ())
    for key, value in theirs.items():
        name = f"{section}.{key}".lstrip(".")
        mine = ours.get(key)
        if _says_nothing(ours, key, value, allowed):
            continue
        if isinstance(mine, dict) and isinstance(value, dict):
            _merge(mine, value, name, source)
        elif key in allowed and not isinstance(mine, dict):
            ours[key] = value
        else:
            shown = name if name.isprintable() else repr(name)
            rule = f"must be {reprlib.repr(mine)}" if key in ours else "is not allowed"
            got = reprlib.repr(value)
            raise ValueError(f"{source}: {shown} {rule} (got {got}); {_advise(name, section)}")


def _says_nothing(ours: dict[str, Any], key: str, value: Any, allowed: Sequence[str]) -> bool:
    """Return True if a field leaves ours as it is: "auto", our own value, or an unused section."""
    if value == "auto":
        return True
    if key in ours:
        return bool(ours[key] == value)
    return key not in allowed and _is_off(value)


def _is_off(value: Any) -> bool:
    """Return True if a section only says that it is not used."""
    if isinstance(value, dict):
        return value.get("enabled") is False or value.get("device") == "none"
    return value is None or value is False


def _advise(name: str, section: str) -> str:
    instead = INSTEAD.get(name) or INSTEAD.get(section)
    if instead:
        return instead
    allowed = ALLOWED.get(section, [])
    near = difflib.get_close_matches(name.rpartition(".")[2], allowed, n=3, cutoff=0.8)
    return f"allowed here: {', '.join(near or allowed) or 'nothing'}"


def _read(path: str) -> dict[str, Any]:
    """Read a file of at most `MAX_BYTES` bytes as a JSON object without double keys or NaN."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"--deepspeed-config: {path}: no such file")
    try:
        text = read_bounded(Path(path), MAX_BYTES)
    except ValueError as error:
        raise ValueError(f"--deepspeed-config: {error}") from None
    try:
        values = json.loads(text, object_pairs_hook=_to_dict, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--deepspeed-config: {path}: must be plain JSON: {error}") from None
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise ValueError(f"--deepspeed-config: {path}: must be a JSON object (got {kind})")
    return values


def _to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dict. Raises ValueError for a key that appears twice."""
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"{key!r} appears more than once")
        values[key] = value
    return values


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _check_with_deepspeed(merged: dict[str, Any], path: str) -> None:
    """Raise ValueError, on one line, for what DeepSpeed refuses."""
    import_deepspeed()
    from deepspeed.runtime.config import DeepSpeedConfig

    try:
        DeepSpeedConfig(copy.deepcopy(merged))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        fault = f"{name}: {first['msg']} (got {reprlib.repr(first.get('input'))})"
        raise ValueError(f"--deepspeed-config: {path}: {fault}") from None
    except Exception as error:
        # ours alone is known to be good, so whatever it is, the file is its cause
        fault = " ".join(str(error).split())
        raise ValueError(f"--deepspeed-config: {path}: DeepSpeed refuses it: {fault}") from None
