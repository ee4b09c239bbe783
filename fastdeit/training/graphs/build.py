"""The choice whether the steps of a run are CUDA graphs."""

from torch import nn

from fastdeit.config.schema import Config
from fastdeit.distributed.world import World
from fastdeit.models.student import Student
from fastdeit.training.graphs.cuda import CudaRecorder
from fastdeit.training.graphs.graph import Graphs
from fastdeit.training.trainer import Trainer
from fastdeit.training.zero.flat_update import FlatUpdate
from fastdeit.training.zero.update import Update


def build_graphs(config: Config, world: World, model: nn.Module, update: Update) -> Graphs | None:
    """Return the graphs of a run's steps; None if --cuda-graph is off, or its steps cannot be
    graphs."""
    if config.run.cuda_graph == "off" or refuse_graphs(config, world, model, update):
        return None
    return Graphs(CudaRecorder(world.device))


def refuse_graphs(config: Config, world: World, model: nn.Module, update: Update) -> str:
    """Return the reason why the steps of a run cannot be graphs; empty: they can."""
    if world.device.type != "cuda":
        return "the device is a CPU"
    if not isinstance(update, FlatUpdate):
        return "DeepSpeed's own step waits for the device"
    if update.gradients.overlaps:
        return "the gradient is reduced during the backward pass (--overlap-reduce)"
    if not isinstance(model, Student):
        return "a timm model draws random numbers of its own"
    if config.run.compile == "on":
        return "--compile is on"
    return ""


def note_graphs(config: Config, world: World, trainer: Trainer) -> list[str]:
    """Return notes on what --cuda-graph auto has led to, once its graphs are recorded."""
    if config.run.cuda_graph == "off":
        return []
    if trainer.graphs is None:
        reason = refuse_graphs(config, world, trainer.state.model, trainer.update)
        return [f"no CUDA graphs: {reason}"]
    return trainer.graphs.take_notes() or ["a step is replayed as CUDA graphs"]
