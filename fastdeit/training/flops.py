"""Model FLOPs of training, and their share of a device's peak (MFU).

Model FLOPs are those of matrix products and convolutions, 2 for a multiply-add: forward pass,
gradients of the weights that are trained, gradients of activations. What a program computes again,
or not at all, does not change them; teacher, augmentation and optimizer are not counted. Source of
the term MFU: Chowdhery et al. 2022 (2204.02311), appendix B.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastdeit.kernels.backend import use_backend
from fastdeit.models.blocks import Block
from fastdeit.models.student import Student

PEAK_TFLOPS = {
    "B200": 2250.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H200": 989.0,
    "GH200": 989.0,
    "H800": 989.0,
    "H20": 148.0,
    "A100": 312.0,
    "A800": 312.0,
    "A30": 165.0,
    "A40": 149.7,
    "A10G": 70.0,
    "A10": 125.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX 6000 Ada": 364.0,
    "RTX A6000": 154.8,
    "RTX 5090": 209.5,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}
"""TFLOP/s of dense bf16 products with fp32 sums, by words of the device's name; of several that
fit, the longest counts. Source: NVIDIA's data sheets and architecture white papers."""


_LESS = {"MIG", "Laptop", "D"}
"""Words in the names of GPUs that are slower than their namesake."""


EFFICIENCY = 0.45
"""The share of the peak that a step is assumed to reach, where its time is estimated."""


def estimate_backward_ms(flops: float, peak_tflops: float) -> float:
    """Return the estimated milliseconds of a backward pass, two thirds of so many model FLOPs of a
    step."""
    return 2 / 3 * flops / (EFFICIENCY * peak_tflops * 1e9)


def find_peak(name: str) -> float | None:
    """Return the dense bf16 TFLOP/s of a GPU with this name; None if they are not known."""
    model = find_model(name)
    return PEAK_TFLOPS[model] if model else None


def find_model(name: str) -> str | None:
    """Return the key in `PEAK_TFLOPS` of a device with this name; None if there is none."""
    words = name.split()
    known = [key for key in PEAK_TFLOPS if _contains(words, key.split())]
    return max(known, key=len) if known and not _LESS & {*words} else None


def _contains(words: list[str], part: list[str]) -> bool:
    """Return True if the words of `part` follow one another in `words`; what follows a dash does
    not count: "A100-SXM4-80GB" is an A100."""
    heads = [word.partition("-")[0] for word in words]
    starts = range(len(words) - len(part) + 1)
    return any(heads[at : at + len(part)] == part for at in starts)


class Utilisation(NamedTuple):
    """Model FLOPs and peak of the devices of a run, which turn its rate into their utilisation."""

    flops: float | None
    """Model FLOPs of training on one image; None: not known."""
    devices: int
    """The number of devices of the run."""
    peak_tflops: float | None
    """The peak of one device in the training precision, in TFLOP/s; None: not known."""

    def rate(self, images_per_s: float) -> dict[str, float]:
        """Return `tflops`, the model TFLOP/s of one device, and `mfu`, their share of its peak, as
        far as they are known."""
        if self.flops is None:
            return {}
        tflops = self.flops * images_per_s / self.devices / 1e12
        return {"tflops": tflops} | ({"mfu": tflops / self.peak_tflops} if self.peak_tflops else {})


def count_flops(model: nn.Module, size: int) -> float | None:
    """Return the model FLOPs of training on one image of `size` px; None for a model of timm that
    torch's meta device cannot run."""
    if isinstance(model, Student):
        return count_student_flops(model)
    try:
        return _count_on_meta(model, size)
    except Exception:  # a model may raise anything, and this is for the log alone
        return None


def count_student_flops(student: Student) -> float:
    """Return the model FLOPs of training on one image.

    All tokens count in every block, as in timm's DeiT; the student computes fewer in the last one.
    """
    in_heads = {parameter for head in _list_heads(student) for parameter in head.parameters()}
    others = {*student.parameters()} - in_heads
    reaches_blocks = any(parameter.requires_grad for parameter in others)
    patch_embedding, *rest = _list_products(student)
    macs = patch_embedding.macs * (1 + patch_embedding.trains)  # images need no gradient
    for product in rest:
        macs += product.macs * (1 + product.trains + reaches_blocks)
    return 2.0 * macs


class _Product(NamedTuple):
    """A matrix product for one image."""

    macs: int
    """The number of multiply-adds."""
    trains: bool
    """True if the gradient of its weights is computed, or in attention that of its second
    operand."""


def _list_products(student: Student) -> Iterator[_Product]:
    """Yield the products of the forward pass, in its order."""
    dim = student.embed_dim
    tokens = student.num_prefix_tokens + student.grid_size**2
    yield _layer(student.patch_embed.proj, student.grid_size**2)
    for module in student.blocks:
        block = cast(Block, module)
        yield _layer(block.attn.qkv, tokens)
        trains = any(parameter.requires_grad for parameter in block.parameters())
        yield _Product(2 * tokens**2 * dim, trains)
        for layer in (block.attn.proj, block.mlp.fc1, block.mlp.fc2):
            yield _layer(layer, tokens)
    for head in _list_heads(student):
        yield _layer(head, 1)


def _list_heads(student: Student) -> tuple[Any, ...]:
    heads = student.get_classifier()
    return heads if isinstance(heads, tuple) else (heads,)


def _layer(layer: Any, rows: int) -> _Product:
    return _Product(rows * layer.weight.numel(), layer.weight.requires_grad)


def _count_on_meta(model: nn.Module, size: int) -> float:
    """Count the products of a forward and backward pass over two images, without their values."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    state = {
        name: tensor.detach().to("meta").requires_grad_(tensor.requires_grad)
        for name, tensor in named.items()
    }
    dtype = next(model.parameters()).dtype
    images = torch.zeros(2, 3, size, size, device="meta", dtype=dtype)
    was_training = model.training
    try:
        with use_backend("reference"), FlopCounterMode(display=False) as counter:
            outputs = torch.func.functional_call(model.train(), state, (images,))
            heads = outputs if isinstance(outputs, tuple | list) else (outputs,)
            torch.stack([head.float().sum() for head in heads]).sum().backward()
    finally:
        model.train(was_training)
    return counter.get_total_flops() / 2
