"""Time of the hashes of all weights that ranks compare, against a sum of the values and SHA-256 of
the bytes.

python -m benchmarks.bench_checksum [--out FOLDER]

The weights of a DeiT in the training precision (bf16 on a GPU, fp32 on a CPU) on one device. The
comparison over ranks, one all-gather of 8 bytes a parameter and rank, is not included. pct_of_copy
counts reading the weights once.
"""

import hashlib
from collections.abc import Callable, Sequence

import torch

from benchmarks.bench_ema import make_student
from benchmarks.measuring import harness
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
    """Assert that one bit of one weight changes the hash of that weight alone."""
    before = hash_weights(weights)
    integers = weights[-1].view(torch.int16)
    integers.view(-1)[0] ^= 1
    changed = (hash_weights(weights) != before).tolist()
    integers.view(-1)[0] ^= 1
    assert changed == [False] * (len(weights) - 1) + [True]


def bench(name: str, device: torch.device, stamp: harness.Row, copy: float) -> list[harness.Row]:
    """Check the hashes, then return the rows of one model."""
    dtype = DTYPES[device.type]
    student = make_student(name, device).to(dtype)
    weights = [parameter.detach() for parameter in student.parameters()]
    check(weights)
    nbytes = sum(weight.nbytes for weight in weights)
    rows = []
    for impl, run in calls(weights).items():
        what = harness.case_columns(
            "checksum", "step", name, str(dtype).removeprefix("torch."), impl
        )
        found = harness.measure(run, device, images=1, nbytes=nbytes, copy=copy)
        rows.append(stamp | what | found | {"images_per_s": ""})
    return rows


if __name__ == "__main__":
    sizes = [("tiny",), ("small",), ("base",)]
    harness.run_benchmark(__doc__, {"cuda": sizes, "cpu": sizes}, bench)
