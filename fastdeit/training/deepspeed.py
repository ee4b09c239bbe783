"""What the flags decide of DeepSpeed's settings: the dict for `deepspeed.initialize`."""

from typing import Any


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
    """What the flags decide.

    Gradients are accumulated and reduced in fp32 whatever the precision, and the stage is the
    `safe_stage`. The optimizer is torch's also where it is offloaded: DeepSpeed's own would be
    compiled at the start of the run (0.19.8). Its buffer for gradients on their way takes 4 bytes
    times the bucket on every device: 200 MB, where its default would take 2 GB.
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
    """The stage that runs for one that is asked for: the same maths.

    Stage 0 becomes 1, which skips a step with NaN; stage 1 in bf16 becomes 2, which accumulates in
    fp32 without a full-size gradient buffer on every rank (DeepSpeed 0.19.8).
    """
    return max(zero_stage, 2 if precision == "bf16" else 1)
