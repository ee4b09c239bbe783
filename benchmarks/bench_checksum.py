"""The hashes of all weights that ranks compare, against a sum of their values and SHA-256 of
their bytes.

python -m benchmarks.bench_checksum [--out FOLDER]

The weights of a DeiT in the training precision (bf16 on a GPU, fp32 on a CPU) on one device; the
comparison over ranks is one all-gather of 8 bytes a parameter and rank. The floor is reading the
weights once.
"""

import hashlib
from collections.abc import Callable, Sequence

import torch

from benchmarks import harness
from benchmarks.bench_ema import make_student
from fastdeit.reliability.replica_check import hash_weights

DTYPES = {"cuda": torch.bfloat16, "cpu": torch.float32}


def digests(weights: Sequence[torch.Tensor]) -> list[bytes]:
    return [
        hashlib.sha256(weight.cpu().view(torch.uint8).numpy().data).digest() for weight in weights
    ]


def calls(weights: Sequence[torch.Tensor]) -> dict[str, Callable[[], object]]:
    return {
        "SHA-256 on the host": lambda: digests(weights),
        "sum of values": lambda: torch.stack([weight.sum() for weight in weights]),
        "ours": lambda: hash_weights(weights),
    }


def check(weights: Sequence[torch.Tensor]) -> None:
    """One bit of one weight must change the hash of that one alone."""
    before, integers = hash_weights(weights), weights[-1].view(torch.int16)
    integers.view(-1)[0] ^= 1
    changed = (hash_weights(weights) != before).tolist()
    integers.view(-1)[0] ^= 1
    assert changed == [False] * (len(weights) - 1) + [True]


def bench(name: str, device: torch.device, stamp: harness.Row, copy: float) -> list[harness.Row]:
    dtype = DTYPES[device.type]
    weights = [
        parameter.detach() for parameter in make_student(name, device).to(dtype).parameters()
    ]
    check(weights)
    nbytes = sum(weight.nbytes for weight in weights)
    what: harness.Row = {
        "bench": "checksum",
        "mode": "step",
        "shape": name,
        "dtype": str(dtype).removeprefix("torch."),
    }
    found = {
        impl: harness.measure(run, device, images=1, nbytes=nbytes, copy=copy)
        for impl, run in calls(weights).items()
    }
    return [
        {**stamp, **what, "impl": impl, **row, "images_per_s": ""} for impl, row in found.items()
    ]


if __name__ == "__main__":
    sizes = [("tiny",), ("small",), ("base",)]
    harness.run_benchmark(__doc__, {"cuda": sizes, "cpu": sizes}, bench)
