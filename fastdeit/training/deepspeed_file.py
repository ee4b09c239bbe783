"""A person's own DeepSpeed file: what it may add to the settings that the flags decide, and how it
is refused."""

import collections
import copy
import difflib
import json
import reprlib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fastdeit.distributed.world import import_deepspeed
from fastdeit.training.deepspeed import safe_stage

MAX_BYTES = 1 << 16

FREE = {
    "": {
        *(
            "zero_optimization",
            "activation_checkpointing",
            "comms_logger",
            "csv_monitor",
            "flops_profiler",
            "tensorboard",
        ),
        *(
            "wandb",
            "disable_python_gc",
            "dump_state",
            "memory_breakdown",
            "steps_per_print",
            "timers",
            "wall_clock_breakdown",
        ),
    },
    "zero_optimization": {
        *(
            "allgather_bucket_size",
            "allgather_partitions",
            "contiguous_gradients",
            "ignore_unused_parameters",
        ),
        *(
            "log_trace_cache_warnings",
            "overlap_comm",
            "reduce_bucket_size",
            "reduce_scatter",
            "round_robin_gradients",
        ),
        *(
            "sub_group_size",
            "use_multi_rank_bucket_allreduce",
            "offload_optimizer",
            "stage3_allgather_sequential",
        ),
        *(
            "stage3_gather_16bit_weights_on_model_save",
            "stage3_max_live_parameters",
            "stage3_max_reuse_distance",
        ),
        *(
            "stage3_model_persistence_threshold",
            "stage3_module_granularity_threshold",
            "stage3_param_persistence_threshold",
        ),
        *("stage3_prefetch_bucket_size", "stage3_use_all_reduce_for_fetch_params"),
    },
    "zero_optimization.offload_optimizer": {"pin_memory"},
    "timers.throughput": {"enabled", "synchronized"},
}
"""By section, the fields that a file may set: they change speed, memory and reports, neither
samples nor maths."""

INSTEAD = {
    "train_batch_size": "use --batch-size",
    "train_micro_batch_size_per_gpu": "use --micro-batch",
    "gradient_accumulation_steps": "use --micro-batch",
    "gradient_clipping": "use --clip-grad",
    "bf16": "use --precision",
    "fp16": "use --precision bf16",
    "amp": "use --precision bf16",
    "torch_autocast": "use --precision bf16",
    "optimizer": "AdamW is what is built: use --lr, --weight-decay, --opt-betas, --opt-eps",
    "scheduler": "the cosine is what is built: use --lr, --warmup-epochs, --warmup-lr, --min-lr",
    "data_types": "gradients are always summed in fp32",
    "communication_data_type": "gradients are always summed in fp32",
    "zero_optimization.stage": "use --zero-stage",
    "zero_optimization.offload_optimizer": "use --offload-optimizer, which keeps the optimizer's state in CPU memory",
    "zero_optimization.offload_param": "weights stay on the device; use --zero-stage 3",
    "checkpoint": "checkpoints are of a form of our own: use --save-steps, --keep-checkpoints",
}
"""What to do instead of setting a field, or a field below it, in the file."""


def add_file(ours: dict[str, Any], path: str) -> dict[str, Any]:
    """`ours` with the fields of a DeepSpeed JSON file put in; "auto" there leaves a field to us.

    Raises ValueError, with a message of one line, for a file that is not small, plain JSON, for a
    field that is not free to set and differs from ours, with what to use instead, and for what
    DeepSpeed itself refuses; FileNotFoundError. Needs the process group.
    """
    theirs, merged = _read(path), copy.deepcopy(ours)
    zero = theirs.get("zero_optimization")
    if (
        isinstance(zero, dict) and type(zero.get("stage")) is int
    ):  # the flag's own value went the same way
        zero["stage"] = safe_stage(zero["stage"], "bf16" if ours["bf16"]["enabled"] else "fp32")
    _merge(merged, theirs, "", f"--deepspeed-config: {path}")
    _ask_deepspeed(merged, path)
    return merged


def _merge(ours: dict[str, Any], theirs: dict[str, Any], section: str, source: str) -> None:
    free: set[str] = FREE.get(section, set())
    for key, value in theirs.items():
        name, mine = f"{section}.{key}".lstrip("."), ours.get(key)
        if (
            value == "auto"
            or (key in ours and mine == value)
            or (key not in ours and key not in free and _is_off(value))
        ):
            continue
        if isinstance(mine, dict) and isinstance(value, dict):
            _merge(mine, value, name, source)
        elif key in free and not isinstance(mine, dict):
            ours[key] = value
        else:
            decided = f", here it is {reprlib.repr(mine)}" if key in ours else ""
            shown = name if name.isprintable() else repr(name)
            raise ValueError(
                f"{source}: {shown}: got {reprlib.repr(value)}{decided}; {_advice(name, section)}"
            )


def _is_off(value: Any) -> bool:
    """Whether a section is there only to say that it is not used."""
    if isinstance(value, dict):
        return value.get("enabled") is False or value.get("device") == "none"
    return value is None or value is False


def _advice(name: str, section: str) -> str:
    instead = INSTEAD.get(name) or INSTEAD.get(section)
    if instead:
        return instead
    free = sorted(FREE.get(section, ()))
    near = difflib.get_close_matches(name.rpartition(".")[2], free, n=3, cutoff=0.8)
    return f"allowed here are {', '.join(near or free) or 'no others'}"


def _read(path: str) -> dict[str, Any]:
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"--deepspeed-config: no file {path}")
    if file.stat().st_size > MAX_BYTES:
        raise ValueError(
            f"--deepspeed-config: {path}: got {file.stat().st_size} bytes, allowed are {MAX_BYTES}"
        )
    try:
        values = json.loads(
            file.read_text("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--deepspeed-config: {path}: not plain JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(
            f"--deepspeed-config: {path}: got {type(values).__name__}, allowed is an object of fields"
        )
    return values


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    (key, times), *_ = collections.Counter(key for key, _ in pairs).most_common(1) or [("", 0)]
    if times > 1:
        raise ValueError(f"{key!r} is there {times} times")
    return dict(pairs)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _ask_deepspeed(merged: dict[str, Any], path: str) -> None:
    import_deepspeed()
    from deepspeed.runtime.config import DeepSpeedConfig

    try:
        DeepSpeedConfig(copy.deepcopy(merged))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ValueError(
            f"--deepspeed-config: {path}: {name}: got {reprlib.repr(first.get('input'))}: {first['msg']}"
        ) from None
    except (
        Exception
    ) as error:  # ours alone is known to be good, so whatever it is, the file is its cause
        raise ValueError(
            f"--deepspeed-config: {path}: DeepSpeed refuses it: {' '.join(str(error).split())}"
        ) from None
