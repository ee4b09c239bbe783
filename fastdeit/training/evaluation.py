"""Top-1 and top-5 accuracy with exact counts over ranks, of several models in one pass over the
images; and the class that each of them gives each image."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

Heads = Callable[[torch.Tensor], dict[str, torch.Tensor]]
"""A function from normalised images (B, 3, H, W) to logits (B, K) by head."""
Outputs = Mapping[str, torch.Tensor]
"""Logits (B, K) or best classes (B, 5) by MODEL/HEAD."""


def student_heads(module: nn.Module) -> Heads:
    """Return a function from images (B, 3, H, W) to logits (B, K) by head: `cls`, `dist` and their
    mean `both`; only `both` if there is one head."""

    def heads(images: torch.Tensor) -> dict[str, torch.Tensor]:
        if hasattr(module, "forward_heads"):
            outputs = module.forward_heads(images)  # type: ignore[operator]
        else:
            outputs = _run_timm_model(module, images)
        if len(outputs) == 1:
            return {"both": outputs[0].float()}
        cls, distillation = (logits.float() for logits in outputs)
        return {"cls": cls, "dist": distillation, "both": (cls + distillation) / 2}

    return heads


def _run_timm_model(module: Any, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the logits of a timm model by head.

    A model with two heads returns them separately only in training mode, so the module that joins
    them, and no other, is in training mode for this pass.
    """
    joining = next((each for each in module.modules() if hasattr(each, "distilled_training")), None)
    if joining is None:
        return (module(images),)
    before = {name: getattr(joining, name) for name in ("training", "distilled_training")}
    vars(joining).update(training=True, distilled_training=True)
    try:
        outputs = module(images)
    finally:
        vars(joining).update(before)
    return outputs if isinstance(outputs, tuple) else (outputs,)


@torch.no_grad()
def evaluate(
    models: Mapping[str, Heads],
    loader: Iterable[Any],
    dtype: torch.dtype,
    observe: Callable[[Any, Outputs, Outputs], None] | None = None,
) -> dict[str, float]:
    """Return accuracies in percent by `MODEL/HEAD/top1` and `/top5`, and the agreement of each head
    with the model named `teacher`; a collective, if there is a process group.

    models: functions from normalised images to logits by head, in evaluation mode. loader: yields
    batches in which rows with label -1 are padding, the same number of batches on every rank.
    observe: called with each batch, its logits, and their `find_best_classes`.
    """
    counts: dict[str, torch.Tensor] = {}
    seen: torch.Tensor | int = 0
    for batch in loader:
        real = batch.labels >= 0
        images = batch.images.to(dtype)
        logits: dict[str, torch.Tensor] = {}
        for name, heads in models.items():
            logits |= {f"{name}/{head}": output for head, output in heads(images).items()}
        best = {name: find_best_classes(output) for name, output in logits.items()}
        for name, hits in _find_hits(best, batch.labels).items():
            counts[name] = counts.get(name, 0) + (hits & real).sum()
        seen = seen + real.sum()
        if observe is not None:
            observe(batch, logits, best)
    names = sorted(counts)
    totals = torch.stack([torch.as_tensor(seen), *(counts[name] for name in names)])
    if dist.is_initialized():
        dist.all_reduce(totals)
    images_seen, *sums = totals.tolist()
    return {name: 100.0 * value / images_seen for name, value in zip(names, sums, strict=True)}


def find_best_classes(logits: torch.Tensor) -> torch.Tensor:
    """Return the five most probable classes, the most probable first, int64 (B, 5); all K if there
    are fewer. logits: (B, K)."""
    return logits.topk(min(5, logits.shape[1])).indices


def _find_hits(best: Outputs, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return bool (B,) by measure: the rows that count for it. best: of `find_best_classes`, by
    MODEL/HEAD."""
    hits = {}
    teacher = best.get("teacher/both")
    for name, classes in best.items():
        hits[f"{name}/top1"] = classes[:, 0] == labels
        hits[f"{name}/top5"] = (classes == labels[:, None]).any(1)
        if teacher is not None and not name.startswith("teacher/"):
            hits[f"{name}/agreement"] = classes[:, 0] == teacher[:, 0]
    return hits


class ClassRecorder:
    """The class that each head gives each image, collected on the device; `gather` joins those of
    all ranks. `add` is an observer of `evaluate`."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._rows: list[torch.Tensor] = []
        self._columns: list[torch.Tensor] = []

    def add(self, batch: Any, logits: Outputs, best: Outputs) -> None:
        """Add a batch; its `image_index` has the rows of the images, and a row with label -1 is
        padding."""
        self._names = list(best)
        self._rows.append(batch.image_index)
        classes = [classes[:, 0] for classes in best.values()]
        self._columns.append(torch.stack((batch.labels, *classes)).int())

    def gather(self) -> dict[str, np.ndarray]:
        """Return int32 (N,) by name: `row`, ascending, `label`, and the class by MODEL/HEAD.

        The dict is empty on all ranks but 0, and before the first batch. A collective, if there is
        a process group.
        """
        if not self._columns:
            return {}
        columns = torch.cat(self._columns, 1)
        rows = torch.cat(self._rows).int().to(columns.device)
        table = _gather(torch.cat((rows[None], columns)))
        if table is None:
            return {}
        table = table[:, table[1] >= 0]
        table = table[:, np.argsort(table[0], kind="stable")]
        return dict(zip(("row", "label", *self._names), table, strict=True))


def _gather(table: torch.Tensor) -> np.ndarray | None:
    """Return the columns (C, N) of all ranks side by side on rank 0, where each rank has as many;
    None elsewhere."""
    parts = [table]
    if dist.is_initialized():
        here = dist.get_rank() == 0
        parts = [torch.empty_like(table) for _ in range(dist.get_world_size())] if here else []
        dist.gather(table, parts if here else None)
    return torch.cat(parts, 1).cpu().numpy() if parts else None
