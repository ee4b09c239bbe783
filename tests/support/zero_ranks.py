"""Work of the two ranks of training/zero/test_partitions.py.

Rank 0 writes FOLDER/two.json. FOLDER holds a checkpoint of one process for each stage, one/N, from
which the ranks resume at every stage; they save theirs as two/NAME, NAME being a variant's.
"""

import gc
import itertools
import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fastdeit.checkpoint.store import load_checkpoint, save_checkpoint
from fastdeit.distributed.collectives import all_agree, barrier
from fastdeit.distributed.exits import hard_exit
from fastdeit.distributed.world import World, init_distributed
from fastdeit.training.trainer import Trainer
from tests.support.tiny_student import (
    BATCH,
    EPOCHS,
    STEPS_PER_EPOCH,
    configure,
    make_batch,
    make_trainer,
    run_steps,
)

STEPS = EPOCHS * STEPS_PER_EPOCH
SHORT = 10
SAVED_AT = 7
AFTER = 3  # steps after a resume
NAN_AT = 4
RESUMED = [(1, 2), (2, 3), (3, 1)]
"""Stages that a checkpoint of one process is saved at and two resume at, in the default run."""
RESUMED_IN_FULL = list(itertools.product((1, 2, 3), repeat=2))
FULL_LENGTH = "2"
"""The variant that takes all `STEPS` steps in the default run; the others take `SHORT`."""
_COMMON = {
    "allgather_bucket_size": 3000,
    "allgather_partitions": False,
    "contiguous_gradients": False,
    "ignore_unused_parameters": False,
    "log_trace_cache_warnings": True,
    "overlap_comm": True,
    "reduce_bucket_size": 8000,
    "reduce_scatter": False,
    "use_multi_rank_bucket_allreduce": False,
}
OWN_FIELDS = {
    "2 tuned": {"zero_optimization": _COMMON | {"round_robin_gradients": True}},
    "3 in pieces": {
        "zero_optimization": _COMMON
        | {
            "sub_group_size": 4000,
            "stage3_allgather_sequential": True,
            "stage3_gather_16bit_weights_on_model_save": True,
            "stage3_max_live_parameters": 10000,
            "stage3_max_reuse_distance": 1000,
            "stage3_model_persistence_threshold": 0,
            "stage3_module_granularity_threshold": 0,
            "stage3_param_persistence_threshold": 0,
            "stage3_prefetch_bucket_size": 8000,
            "stage3_use_all_reduce_for_fetch_params": True,
        }
    },
}
"""DeepSpeed files by variant, each field at another value than its default. At ZeRO 3 every
parameter is sharded; by default DeepSpeed keeps parameters as small as these whole."""


def train(trainer: Trainer, world: World, count: int, accumulate: int = 1) -> list[float]:
    """Take `count` steps; return their losses over all ranks' samples."""
    mine = run_steps(trainer, count, BATCH // world.size // accumulate, world.rank, world.size)
    total = torch.tensor(mine, dtype=torch.float64)
    dist.all_reduce(total)
    return (total / world.size).tolist()


def step_with_nan(trainer: Trainer, world: World) -> dict[str, Any]:
    """Take a step in which only the last rank's images hold a NaN; return what it changes."""
    train(trainer, world, NAN_AT)
    before = trainer.state.weights()
    ema_before = trainer.state.ema_weights()
    batch = make_batch(NAN_AT, world.rank, world.size)
    if world.rank == world.size - 1:
        batch.images[1, 0, 5, 5] = float("nan")
    trainer.train_step([batch])
    after = trainer.state.weights()
    ema_after = trainer.state.ema_weights()
    assert ema_before is not None and ema_after is not None
    same = all(torch.equal(after[name], before[name]) for name in before)
    same = same and all(torch.equal(ema_after[name], ema_before[name]) for name in ema_before)
    skipped = all_agree(trainer.state.skipped == 1)
    return {"untouched": all_agree(same), "skipped": skipped, "losses": train(trainer, world, 3)}


def train_in_bf16(
    name: str, fields: dict[str, Any], full: bool, world: World
) -> dict[str, list[float]]:
    """Train a variant in bf16; return its losses by micro-batches a step."""
    found: dict[str, list[float]] = {}
    if not full and fields["zero_stage"] == 1:  # in bf16, stage 1 becomes stage 2
        return found
    for accumulate in (1, 4) if full else (2,):
        micro = BATCH // world.size // accumulate
        trainer = make_trainer(configure(**fields, micro_batch=micro, precision="bf16"), world)
        found[f"{name} x {accumulate}"] = train(trainer, world, SHORT if full else 8, accumulate)
    return found


def resume_run(folder: Path, stage: int, world: World) -> list[float]:
    """Resume at `stage` from the checkpoint in `folder`; return the losses of the next steps."""
    trainer = make_trainer(configure(zero_stage=stage, micro_batch=BATCH // world.size // 2), world)
    train(trainer, world, 1, accumulate=2)  # another state, which is overwritten
    trainer.state.load(*load_checkpoint(next(folder.iterdir())))
    return train(trainer, world, AFTER, accumulate=2)


def save(trainer: Trainer, folder: Path, world: World) -> None:
    """Gather the state on all ranks; rank 0 writes it as a checkpoint in `folder`."""
    tensors, state = trainer.state.gather()
    if world.rank == 0:
        save_checkpoint(folder, state["step"], tensors, state, keep=1)
    dist.barrier()


def write_variants(folder: Path) -> dict[str, dict[str, Any]]:
    """Write DeepSpeed's files to `folder`; return the changed fields of each variant by name.

    Stage 0 is no variant: it is built as stage 1 is.
    """
    plain: dict[str, dict[str, Any]] = {str(stage): {"zero_stage": stage} for stage in (1, 2, 3)}
    offloaded = {
        f"{stage} offloaded": {"zero_stage": stage, "offload_optimizer": True} for stage in (2, 3)
    }
    own: dict[str, dict[str, Any]] = {}
    for name, fields in OWN_FIELDS.items():
        file = folder / f"{name}.json"
        own[name] = {"zero_stage": int(name[0]), "deepspeed_config": str(file)}
        file.write_text(json.dumps(fields))
    # a block that is computed again gathers its weights again
    own["3 in pieces"]["grad_checkpointing"] = True
    return plain | own | offloaded


def main(folder: Path, full: bool) -> None:
    world = init_distributed()
    gc.freeze()  # each engine at ZeRO 3 collects garbage, which would search all of torch
    results: dict[str, Any] = {"fp32": {}, "bf16": {}, "nan": {}, "resumed": {}}
    for name, fields in write_variants(folder).items():
        for accumulate in (1, 4) if full else (4,):
            micro = BATCH // world.size // accumulate
            trainer = make_trainer(configure(**fields, micro_batch=micro), world)
            first = train(trainer, world, SAVED_AT, accumulate)
            if accumulate == 4:
                save(trainer, folder / "two" / name, world)
            steps = STEPS if full or name == FULL_LENGTH else SHORT
            rest = train(trainer, world, steps - SAVED_AT, accumulate)
            results["fp32"][f"{name} x {accumulate}"] = first + rest
        results["nan"][name] = step_with_nan(make_trainer(configure(**fields), world), world)
        results["bf16"] |= train_in_bf16(name, fields, full, world)
    for source, stage in RESUMED_IN_FULL if full else RESUMED:
        found = resume_run(folder / "one" / str(source), stage, world)
        results["resumed"][f"{source} to {stage}"] = found
    if world.rank == 0:
        (folder / "two.json").write_text(json.dumps(results))
    barrier()
    hard_exit(0)  # gloo's threads may abort a process that ends by itself
