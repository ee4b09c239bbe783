"""The memory plan of `import fastdeit`."""

import torch

from fastdeit.config.parse import require, require_value
from fastdeit.config.schema import Config
from fastdeit.distributed.world import World
from fastdeit.library.errors import names_arguments
from fastdeit.models.build import build_model
from fastdeit.models.teachers.ensemble import LiveTeacher
from fastdeit.training.memory.build import build_planner, find_micro_batch
from fastdeit.training.memory.plan import MemoryPlan


@names_arguments()
def estimate_memory(
    config: Config,
    *,
    world_size: int = 1,
    num_classes: int = 1000,
    teacher: LiveTeacher | None = None,
    device: torch.device | str = "cuda",
) -> MemoryPlan:
    """Return the memory that a run needs on each GPU, without a GPU: `plan.total` in bytes,
    `plan.parts` by part, `plan.describe()` as the heading of a run has it.

    The training step is made once on tensors without values. world_size: processes, one a GPU.
    teacher: of `create_teacher`, if it runs live. device: the kind of device, "cuda" or "cpu".
    CUDA's context (about 0.5 GB), NCCL and DALI are not in it. Raises ValueError naming the
    argument.
    """
    require_value(world_size >= 1, "world_size", world_size, "1 or more")
    require_value(num_classes >= 1, "num_classes", num_classes, "1 or more")
    batch_size = config.optim.batch_size
    allowed = f"a multiple of {2 * world_size} on {world_size} processes"
    require(batch_size % (2 * world_size) == 0, "batch_size", batch_size, allowed)
    world = World(0, world_size, 0, world_size, torch.device(device))
    # a timm model draws its weights from torch's global generator
    with torch.random.fork_rng(devices=[]):
        model, _ = build_model(config, [str(row) for row in range(num_classes)])
    planner = build_planner(config, world, model, teacher, num_classes)
    return planner(find_micro_batch(config, world), config.run.grad_checkpointing)
