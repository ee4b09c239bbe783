"""The check of a written export: it is loaded again and compared with the model on photographs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from fastdeit.export.network import OUTPUTS, Heads, Precision, build_network
from fastdeit.inference.load import LoadedModel, build_transform
from fastdeit.models.hub import EvalView

TOLERANCES: dict[str, float] = {"fp32": 1e-4, "fp16": 3e-2, "bf16": 3e-1}
"""The largest difference of a logit from the model in fp32, if no logit is above `_USUAL_LOGIT`;
else in proportion to the largest one."""
_USUAL_LOGIT = 10.0
_BATCHES = (1, 4, 3)  # of photographs: one, several, and another number than was traced

Outputs = torch.Tensor | Sequence[torch.Tensor]
"""The outputs of an export, each (B, K)."""
Run = Callable[[torch.Tensor], Outputs]
"""A function from normalised images (B, 3, S, S) fp32 to the outputs of an export."""


@dataclass(frozen=True)
class Difference:
    """The distance of the logits of an export from those of the model in fp32.

    largest: the largest |export - model| over images, heads and classes; logit: the largest |logit|
    of the model; tolerance: the allowed value of `largest`; same_class: the number of images whose
    most probable class is the same, in each head; images: the number of all.
    """

    largest: float
    logit: float
    tolerance: float
    same_class: int
    images: int

    @property
    def is_allowed(self) -> bool:
        """Return True if the export computes what the model does; not if a logit is NaN."""
        return self.largest <= self.tolerance


def measure_difference(
    run: Run, loaded: LoadedModel, heads: Heads, precision: Precision
) -> Difference:
    """Compare an export with the model that it was made of, on photographs in batches of several
    sizes.

    run: normalised images (B, 3, S, S) fp32 → the export's outputs, each (B, K). Raises ValueError
    for outputs of another number or shape.
    """
    images = read_photographs(loaded.view, sum(_BATCHES))
    with torch.inference_mode():
        wanted = _stack(build_network(loaded, heads, "fp32")(images))
        parts = [_stack(run(batch)) for batch in images.split(_BATCHES)]
    found = torch.cat(parts, dim=1).float()
    if found.shape != wanted.shape:
        rule = f"must give {OUTPUTS[heads]} of {tuple(wanted.shape[1:])}"
        raise ValueError(f"the export {rule} (got {tuple(found.shape)})")
    logit = wanted.abs().max().item()
    return Difference(
        largest=(found - wanted).abs().max().item(),
        logit=logit,
        tolerance=TOLERANCES[precision] * max(1.0, logit / _USUAL_LOGIT),
        same_class=int((found.argmax(-1) == wanted.argmax(-1)).all(0).sum()),
        images=len(images),
    )


def _stack(logits: Outputs) -> torch.Tensor:
    """Return outputs (B, K) as one tensor (outputs, B, K)."""
    return torch.stack([logits] if isinstance(logits, torch.Tensor) else list(logits))


def check_difference(difference: Difference, precision: Precision) -> None:
    """Raise ValueError unless an export computes what the model does."""
    if difference.is_allowed:
        return
    allowed = f"at most {difference.tolerance:.1e} in {precision}"
    advice = " (fp16 overflows above 65,504: try bf16)" if precision == "fp16" else ""
    found = f"the logits of the export differ from the model's by {difference.largest:.1e}"
    raise ValueError(f"{found}, {allowed} is allowed{advice}; nothing was written")


def read_photographs(view: EvalView, count: int) -> torch.Tensor:
    """Return `count` photographs as the model sees images: fp32 (count, 3, size, size).

    They are crops of the two photographs in scikit-learn, the same at each call.
    """
    transform = build_transform(view)
    stored = [Image.fromarray(image) for image in load_sample_images().images]
    width, height = stored[0].size  # both are landscapes of one size
    parts = []
    for number in range(count):
        left = number * (width - height) // count
        part = stored[number % 2].crop((left, 0, left + height, height))
        parts.append(transform(part))
    return torch.stack(parts)
