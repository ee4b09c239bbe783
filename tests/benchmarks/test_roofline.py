"""The estimates of a step's time: operations and bytes are those of the model, and more GPUs never
make a step shorter.

python -m pytest tests/benchmarks/test_roofline.py, 1 s
"""

import pytest

from benchmarks.bench_scaling import GPUS, estimate
from benchmarks.bench_step import GFLOP
from benchmarks.roofline import shape_of
from fastdeit.estimate.roofline import ATTENTION, Device, list_kernels, parts_ms, step_ms
from fastdeit.models.sizes import SIZES
from fastdeit.training.zero.links import Links

BATCH = 64
SMALL = shape_of("small")


@pytest.mark.parametrize("student", GFLOP)
def test_products_have_the_operations_of_the_model(student: str) -> None:
    # the figure counts all tokens in the last block, of which only two are computed behind its
    # attention; attention itself is bytes here
    size = SIZES[f"deit_{student}_distilled_patch16_224"]
    of_attention = 12 * size.depth * 198**2 * size.embed_dim
    of_last_block = 3 * 2 * 196 * 9 * size.embed_dim**2
    expected = 1e9 * GFLOP[student] - of_attention - of_last_block
    found = (
        sum(kernel.number * kernel.flops for kernel in list_kernels(shape_of(student), BATCH))
        / BATCH
    )
    assert found == pytest.approx(expected, rel=0.02)


def test_attention_moves_twelve_units() -> None:
    unit = 2 * BATCH * 198 * 384
    moved = sum(k.number * k.nbytes for k in list_kernels(SMALL, BATCH) if k.part == "attention")
    assert moved == pytest.approx(12 * unit * (4 * ATTENTION[0] + 8 * ATTENTION[1]))


def test_parts_add_up_and_a_faster_device_is_faster() -> None:
    assert sum(parts_ms(SMALL, BATCH).values()) == pytest.approx(step_ms(SMALL, BATCH))
    faster = Device(bytes_per_s=1e14, flops_per_s=1e16, start_us=0.0)
    assert step_ms(SMALL, BATCH, faster) < step_ms(SMALL, BATCH) / 10


@pytest.mark.parametrize("student", GFLOP)
def test_more_gpus_never_shorten_a_step(student: str) -> None:
    rows = [estimate(student, ranks, Links()) for ranks in GPUS]
    times = [float(row["step_ms"]) for row in rows]
    assert times == sorted(times) and rows[0]["efficiency"] == "1.000"
    assert all(float(row["hidden_ms"]) <= float(row["step_ms"]) for row in rows)
