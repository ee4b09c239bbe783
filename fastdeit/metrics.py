"""Means on the device, and their record: metrics.jsonl and TensorBoard events in the run folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fastdeit.durable import write_whole


class Meter:
    """Mean of a vector of statistics over steps and ranks, kept on the device until it is read."""

    def __init__(self) -> None:
        self._sum: torch.Tensor | None = None
        self._count = 0

    def add(self, values: torch.Tensor) -> None:
        """values: fp32 (K,), detached; no host synchronisation."""
        self._sum = values.clone() if self._sum is None else self._sum + values
        self._count += 1

    def read(self) -> list[float]:
        """The K means since the last call, over all ranks; a collective, and the loop's only host synchronisation."""
        assert self._sum is not None, "nothing was added"
        mean = self._sum / self._count / dist.get_world_size()
        self._sum, self._count = None, 0
        dist.all_reduce(mean)
        return mean.tolist()


class MetricLog:
    """metrics.jsonl, a JSON object a line with the optimizer step, and the same numbers as TensorBoard scalars.

    start_step: the step a resumed run starts from; later lines of the interrupted run are dropped, so that the file reads
    like that of a run which was never stopped. Use on rank 0 only.
    """

    def __init__(self, folder: Path, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # imports slowly

        path = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(path) if line["step"] <= start_step] if start_step else []
        write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", buffering=1)
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        self._writer.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line cut short by a kill is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines
