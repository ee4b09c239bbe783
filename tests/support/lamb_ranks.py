"""Work of the two ranks of test_lamb.py: LAMB at every ZeRO stage.

FOLDER holds a checkpoint of one process, one/step-N; rank 0 writes FOLDER/two.json: by variant the
losses of a run, those after a resume, and the largest difference of the weights from one.pt.
"""

import json
from pathlib import Path
from typing import Any

import torch

from fastdeit.checkpoint.store import load_checkpoint
from fastdeit.distributed.collectives import barrier
from fastdeit.distributed.exits import hard_exit
from fastdeit.distributed.world import init_distributed
from tests.support.tiny_student import BATCH, configure, make_trainer
from tests.support.zero_ranks import AFTER, train, write_variants

STEPS = 6
SAVED_AT = 3
LAMB: dict[str, Any] = {"opt": "lamb", "lr": 0.3}


def compare(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of an element."""
    return max((found[name] - value).abs().max().item() for name, value in expected.items())


def main(folder: Path) -> None:
    world = init_distributed()
    expected = torch.load(folder / "one.pt")
    results = {}
    for name, fields in write_variants(folder).items():
        config = configure(**fields, **LAMB, micro_batch=BATCH // world.size // 2)
        trainer = make_trainer(config, world)
        losses = train(trainer, world, STEPS, 2)
        difference = compare(trainer.state.weights(), expected)
        trainer.state.load(*load_checkpoint(next((folder / "one").iterdir())))
        results[name] = (losses, train(trainer, world, AFTER, 2), difference)
    if world.rank == 0:
        (folder / "two.json").write_text(json.dumps(results))
    barrier()
    hard_exit(0)  # gloo's threads may abort a process that ends by itself
