"""Top-1 and top-5 accuracy with exact counts over ranks, of several models in one pass over the
images."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

Heads = Callable[[torch.Tensor], dict[str, torch.Tensor]]


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

    A model with two returns them apart in training alone: so the module that joins them, and no
    other, is in training for this pass.
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
    observe: Callable[[Any, Mapping[str, torch.Tensor]], None] | None = None,
) -> dict[str, float]:
    """Return accuracies in percent by `MODEL/HEAD/top1` and `/top5`, and the agreement of each head
    with the model named `teacher`; a collective, if there is a process group.

    models: functions from normalised images to logits by head, in evaluation mode. loader: yields
    batches in which rows with label -1 are padding, the same number of batches on every rank.
    observe: called with each batch and its logits by MODEL/HEAD.
    """
    counts: dict[str, torch.Tensor] = {}
    seen: torch.Tensor | int = 0
    for batch in loader:
        real = batch.labels >= 0
        images = batch.images.to(dtype)
        logits: dict[str, torch.Tensor] = {}
        for name, heads in models.items():
            logits |= {f"{name}/{head}": output for head, output in heads(images).items()}
        for name, hits in _find_hits(logits, batch.labels).items():
            counts[name] = counts.get(name, 0) + (hits & real).sum()
        seen = seen + real.sum()
        if observe is not None:
            observe(batch, logits)
    names = sorted(counts)
    totals = torch.stack([torch.as_tensor(seen), *(counts[name] for name in names)])
    if dist.is_initialized():
        dist.all_reduce(totals)
    images_seen, *sums = totals.tolist()
    return {name: 100.0 * value / images_seen for name, value in zip(names, sums, strict=True)}


def find_best_classes(logits: torch.Tensor) -> torch.Tensor:
    """Return int64 (B, 5), or (B, K) of fewer classes: the most probable ones, the first first."""
    return logits.topk(min(5, logits.shape[1])).indices


def _find_hits(logits: Mapping[str, torch.Tensor], labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return bool (B,) by measure: the rows that count for it."""
    hits = {}
    decision = logits["teacher/both"].argmax(1) if "teacher/both" in logits else None
    for name, out in logits.items():
        best = find_best_classes(out)
        hits[f"{name}/top1"] = best[:, 0] == labels
        hits[f"{name}/top5"] = (best == labels[:, None]).any(1)
        if decision is not None and not name.startswith("teacher/"):
            hits[f"{name}/agreement"] = best[:, 0] == decision
    return hits
