"""The stream of a loader's thread: what it makes is whole when the step reads it."""

import threading

import pytest
import torch

from fastdeit.data.device.side_stream import SideStream, _list_tensors
from fastdeit.data.loaders.batch import Batch
from fastdeit.kernels.normalise import Pixels

WAIT_CYCLES = 50_000_000
"""Of the GPU's clock, some 30 ms."""


def test_every_tensor_of_a_batch_is_found() -> None:
    crops, levels, erase, key, labels, lam, box, mask, ordinals, rows = map(torch.tensor, range(10))
    batch = Batch(
        Pixels(crops, levels, erase, "const", key), labels, lam, box, mask, ordinals, rows
    )
    found = [int(tensor) for tensor in _list_tensors((batch, 3))]
    assert found == list(range(10))


def test_a_cpu_has_no_stream() -> None:
    side = SideStream(torch.device("cpu"))
    with side.use():
        made = torch.ones(3)
        mark = side.mark()
    assert mark is None
    side.hand_over(made, mark)


def _make_late(side: SideStream, value: float) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """Return a tensor that the GPU fills late, made in another thread."""
    made: list[tuple[torch.Tensor, torch.cuda.Event | None]] = []

    def make() -> None:
        with side.use():
            tensor = torch.zeros(1 << 20, device="cuda")
            torch.cuda._sleep(WAIT_CYCLES)
            made.append((tensor.fill_(value), side.mark()))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]


@pytest.mark.gpu
def test_the_step_waits_for_what_the_thread_has_launched() -> None:
    side = SideStream(torch.device("cuda"))
    tensor, mark = _make_late(side, 7.0)
    assert mark is not None and not mark.query()  # the host has not waited
    side.hand_over((tensor,), mark)
    assert float(tensor.sum()) == 7.0 * (1 << 20)


@pytest.mark.gpu
def test_memory_is_not_used_again_before_the_step_has_read_it() -> None:
    side = SideStream(torch.device("cuda"))
    tensor, mark = _make_late(side, 1.0)
    side.hand_over((tensor,), mark)
    place = tensor.data_ptr()
    torch.cuda._sleep(WAIT_CYCLES)
    total = tensor.sum()
    del tensor
    other, _ = _make_late(side, 2.0)
    assert other.data_ptr() != place
    assert float(total) == 1 << 20


@pytest.mark.gpu
def test_the_main_threads_stream_stays_current() -> None:
    before = torch.cuda.current_stream()
    side = SideStream(torch.device("cuda"))
    _make_late(side, 1.0)
    assert torch.cuda.current_stream() == before
    with side.use():
        assert torch.cuda.current_stream() != before
    assert torch.cuda.current_stream() == before
