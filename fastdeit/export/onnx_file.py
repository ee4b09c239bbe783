"""An ONNX file, FILE.onnx, for onnxruntime and other runtimes.

Input: `images`, fp32 (batch, 3, S, S), any batch. Outputs: `logits`, or `cls` and `dist`, fp32
(batch, K). The file's properties have what `describe` returns, each value as JSON.
"""

import importlib
import json
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from fastdeit.config.parse import require, require_value
from fastdeit.export.check import Run
from fastdeit.export.network import (
    OUTPUTS,
    Heads,
    Precision,
    build_network,
    first_line,
    quiet_torch,
    trace,
)
from fastdeit.export.record import Exported, Writer, write_checked
from fastdeit.inference.load import LoadedModel

_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_MAX_BYTES = (1 << 31) - 1  # of a protobuf message


def export_onnx(
    loaded: LoadedModel, path: Path, *, heads: Heads = "mean", precision: Precision = "fp32"
) -> Exported:
    """Write a model as an ONNX file, after a check with onnxruntime that it computes the same.

    heads: "mean" for one output, "both" for the logits of the class and the distillation head;
    precision: of weights and arithmetic, "fp32" or "fp16" (onnxruntime computes no bf16 on a CPU,
    so such a file could not be checked). Raises ValueError as `export_program`, and for a package
    that is missing.
    """
    check_onnx(precision)
    network = build_network(loaded, heads, precision)
    _check_size(network)
    model = _convert(trace(network, loaded.view.size, loaded.name), heads, loaded.name)

    def save(file: BinaryIO, description: dict[str, object]) -> None:
        values = {name: json.dumps(value) for name, value in description.items()}
        model.metadata_props.update(values)
        file.write(_encode(model))

    writer = Writer("onnx", save, load_onnx)
    return write_checked(loaded, path, writer, heads, precision)


def check_onnx(precision: Precision) -> None:
    """Raise ValueError unless the packages for ONNX are installed and can check a precision."""
    allowed = "fp32 or fp16 for ONNX, as onnxruntime computes no bf16 on a CPU"
    require(precision != "bf16", "precision", precision, allowed)
    for name in _NEEDED:
        try:
            importlib.import_module(name)
        except ImportError as error:
            advice = "pip install 'fastdeit[onnx]'"
            raise ValueError(f"ONNX needs the package {name}: {advice} ({error})") from None


def _check_size(network: nn.Module) -> None:
    """Raise ValueError unless the weights fit into one file of ONNX."""
    size = sum(value.nbytes for value in network.state_dict().values())
    limit = f"at most {_MAX_BYTES:,} bytes of weights"
    require_value(size < _MAX_BYTES, "a model in one ONNX file", size, limit)


def _convert(program: torch.export.ExportedProgram, heads: Heads, name: str) -> Any:
    """Return a recorded network as a model of onnx_ir.

    Raises ValueError, with one line, for an operator that has no form in ONNX.
    """
    try:
        with quiet_torch():
            made = torch.onnx.export(
                program,
                input_names=["images"],
                output_names=list(OUTPUTS[heads]),
                # for a program it only names the axis
                dynamic_shapes={"images": {0: "batch"}},
                verbose=False,
            )
    except Exception as error:
        # any operator of any model can fail, each in its own way
        raise ValueError(f"{name} has no form in ONNX: {first_line(error)}") from error
    assert made is not None
    _remove_notes(made.model)
    return made.model


def _remove_notes(model: Any) -> None:
    """Remove the exporter's notes: torch's name, Python's class and line of each node."""
    graph = model.graph
    values = [*graph.inputs, *graph.outputs, *graph.initializers.values()]
    nodes = list(graph)
    for part in (graph, *nodes, *values, *(value for node in nodes for value in node.outputs)):
        part.metadata_props.clear()


def _encode(model: Any) -> bytes:
    """Return the bytes of an ONNX file with all weights inside."""
    import onnx_ir

    return bytes(onnx_ir.to_proto(model).SerializeToString())


def load_onnx(path: Path) -> Run:
    """Return the function of an ONNX file, by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])

    def run(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = session.run(None, {"images": images.numpy()})
        return tuple(torch.from_numpy(output) for output in outputs)

    return run
