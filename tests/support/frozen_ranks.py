"""Work of the two ranks of test_frozen.py: FOLDER/two.json gets the losses by kind and stage, and
FOLDER/KIND STAGE a checkpoint of step `SAVED_AT`."""

import gc
import json
from pathlib import Path

from fastdeit.distributed.collectives import barrier
from fastdeit.distributed.exits import hard_exit
from fastdeit.distributed.world import init_distributed
from tests.support.tiny_student import configure, make_trainer
from tests.support.zero_ranks import save, train

SAVED_AT = 4
AFTER = 3
STAGES = (1, 2, 3)


def main(folder: Path) -> None:
    world = init_distributed()
    gc.freeze()  # each engine at ZeRO 3 collects garbage, which would search all of torch
    losses = {}
    for kind in ("attention", "heads"):
        for stage in STAGES:
            trainer = make_trainer(configure(trainable=kind, zero_stage=stage), world)
            first = train(trainer, world, SAVED_AT)
            save(trainer, folder / f"{kind} {stage}", world)
            losses[f"{kind} {stage}"] = first + train(trainer, world, AFTER)
    if world.rank == 0:
        (folder / "two.json").write_text(json.dumps(losses))
    barrier()
    hard_exit(0)  # gloo's threads may abort a process that ends by itself
