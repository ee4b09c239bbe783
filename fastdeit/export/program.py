"""An exported program of torch, FILE.pt2: `torch.export.load` runs it without fastdeit.

It holds the weights and a graph of torch's operators for images (B, 3, S, S) with any B, in any
float dtype; its outputs are fp32. The extra file `config.json` has what `describe` returns, so the
program can be a teacher: --teacher-model export --teacher-path FILE.pt2.
"""

import io
import json
from pathlib import Path
from typing import BinaryIO

import torch

from fastdeit.export.check import Run
from fastdeit.export.network import Heads, Precision, build_network, quiet_torch, trace
from fastdeit.export.record import Exported, Writer, write_checked
from fastdeit.inference.load import LoadedModel


def export_program(
    loaded: LoadedModel, path: Path, *, heads: Heads = "mean", precision: Precision = "fp32"
) -> Exported:
    """Write a model as an exported program, after a check that it computes the same.

    heads: "mean" for one output, "both" for the logits of the class and the distillation head;
    precision: of weights and arithmetic. Raises ValueError for a model that cannot be recorded, an
    export that differs, and a file that cannot be written; then an older file does not change.
    """
    network = build_network(loaded, heads, precision)
    program = trace(network, loaded.view.size, loaded.name)

    def save(file: BinaryIO, description: dict[str, object]) -> None:
        files = {"config.json": json.dumps(description, indent=1)}
        # to memory first: torch ends the process when a disk is full
        whole = io.BytesIO()
        with quiet_torch():
            torch.export.save(program, whole, extra_files=files)
        file.write(whole.getbuffer())

    writer = Writer("program", save, load_program)
    return write_checked(loaded, path, writer, heads, precision)


def load_program(path: Path) -> Run:
    """Return the function of an exported program."""
    with path.open("rb") as file, quiet_torch():
        return torch.export.load(file).module()
