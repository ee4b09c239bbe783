"""The network that an export records: the mean of the heads, or both, at the evaluation's size."""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import nn

from fastdeit.config.parse import require
from fastdeit.inference.load import LoadedModel
from fastdeit.kernels.backend import use_backend
from fastdeit.models.student import Student
from fastdeit.training.evaluation import student_heads

Heads = Literal["mean", "both"]
"""The choice of the heads that an export has."""
Precision = Literal["fp32", "fp16", "bf16"]
"""The precision of an export."""
DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
"""The dtype of each precision."""
_EXAMPLES = 2  # torch.export takes a batch of 1 for a constant
Logits = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
"""The logits of one head, or of both, each (B, K)."""
OUTPUTS: dict[str, tuple[str, ...]] = {"mean": ("logits",), "both": ("cls", "dist")}
"""Names of the outputs, each (B, K) fp32, by the choice of heads."""


class Network(nn.Module):
    """A network from normalised images (B, 3, H, W) in any float dtype to the logits that `OUTPUTS`
    names.

    heads: "mean" gives the mean of a DeiT's two heads, or the logits of a model with one head;
    "both" the logits of the class and of the distillation head. The model's parameters decide the
    dtype of the arithmetic; the mean is taken in fp32.
    """

    def __init__(self, model: nn.Module, heads: Heads) -> None:
        super().__init__()
        self.model = model
        self.dtype = next(model.parameters()).dtype
        self.choice = heads
        self._heads = student_heads(model)

    def forward(self, images: torch.Tensor) -> Logits:
        logits = self._heads(images.to(self.dtype))
        if self.choice == "mean":
            return logits["both"]
        return logits["cls"], logits["dist"]


def build_network(loaded: LoadedModel, heads: Heads, precision: Precision) -> Network:
    """Return a copy of a loaded model on the CPU, in a precision, as a network to record.

    Raises ValueError for both heads of a model that has one.
    """
    size = loaded.view.size
    model = copy.deepcopy(loaded.model).to("cpu", torch.float32).eval().requires_grad_(False)
    if isinstance(model, Student) and model.image_size != size:
        model.set_input_size(size)
    if heads == "both":
        found = student_heads(model)(torch.zeros(1, 3, size, size))
        require("dist" in found, "heads", heads, f"mean, as {loaded.name} has one head")
    return Network(model.to(DTYPES[precision]), heads)


def trace(network: Network, size: int, name: str) -> torch.export.ExportedProgram:
    """Record a network as a graph of torch's operators with a dynamic batch.

    It holds neither checks of dtypes nor lines of source code. Raises ValueError, with one line,
    for a network that torch cannot trace.
    """
    images = torch.zeros(_EXAMPLES, 3, size, size)
    shapes = {"images": {0: torch.export.Dim("batch", min=1)}}
    try:
        with use_backend("reference"), quiet_torch():
            program = torch.export.export(network, (images,), dynamic_shapes=shapes)
    except Exception as error:
        # any operator of any model can fail, each in its own way
        raise ValueError(f"torch.export cannot record {name}: {first_line(error)}") from error
    for module in _graphs(program.graph_module):
        _clean(module.graph)
        module.recompile()
    return program


@contextlib.contextmanager
def quiet_torch() -> Iterator[None]:
    """Hide what torch's exporters print: warnings of their own code, their log below errors, and
    graphs that they cannot record."""
    logs = [logging.getLogger(name) for name in ("torch.onnx", "torch.fx")]
    before = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        unseen = io.StringIO()
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(unseen),
            contextlib.redirect_stderr(unseen),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, before, strict=True):
            log.setLevel(level)


def first_line(error: Exception) -> str:
    """Return the first line of the first cause of an error, or its kind if it has no text."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _graphs(module: torch.fx.GraphModule) -> Sequence[torch.fx.GraphModule]:
    return [part for part in module.modules() if isinstance(part, torch.fx.GraphModule)]


def _clean(graph: torch.fx.Graph) -> None:
    """Remove the checks of dtypes, which would refuse half images and autocast; and the lines of
    source code, which name folders of this machine."""
    check = torch.ops.aten._assert_tensor_metadata.default
    for node in list(graph.nodes):
        node.meta.pop("stack_trace", None)
        if node.target is check:
            graph.erase_node(node)
