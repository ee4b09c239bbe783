"""Numbers on their way between host and device: order, places that are used again."""

import pytest
import torch

from benchmarks.measuring.counting import StepCounter
from fastdeit.training.staging import SLOTS, StagedFlags, StagedNumbers

CPU = torch.device("cpu")


def test_numbers_are_those_of_the_last_write_in_the_same_memory() -> None:
    numbers = StagedNumbers(2, CPU)
    address = numbers.values.data_ptr()
    for step in range(5):
        numbers.write([step, 0.1])
        assert numbers.values.tolist() == [step, torch.tensor(0.1).item()]
    assert numbers.values.data_ptr() == address


def test_staged_numbers_of_the_step_before_stay_as_they_were() -> None:
    """The device may not have copied them yet."""
    numbers = StagedNumbers(1, CPU)
    staged = []
    for step in range(1, 4):
        numbers.write([step])
        staged.append(numbers._staged[numbers._slot])
        if step > 1:
            assert staged[-2].tolist() == [step - 1]


def test_equal_numbers_are_not_copied_again() -> None:
    numbers = StagedNumbers(1, CPU)
    numbers.write([0.5])
    with StepCounter() as counter:
        numbers.write([0.5])
    assert counter.launches == 0


def test_flags_are_read_without_an_operator() -> None:
    flags = StagedFlags(CPU)
    sent = [flags.send(torch.tensor(float(step % 2))) for step in range(SLOTS)]
    with StepCounter() as counter:
        assert [flags.read(number) for number in sent] == [False, True]
    assert counter.launches == counter.waits == 0


def test_flag_that_was_overwritten_is_not_read() -> None:
    flags = StagedFlags(CPU)
    first = flags.send(torch.tensor(1.0))
    for _ in range(SLOTS):
        flags.send(torch.tensor(0.0))
    with pytest.raises(AssertionError, match="overwritten"):
        flags.read(first)


@pytest.mark.gpu
def test_gpu_numbers_and_flags_cross_behind_the_work_of_their_step() -> None:
    device = torch.device("cuda")
    numbers, flags = StagedNumbers(1, device), StagedFlags(device)
    seen = []
    sent = []
    for step in range(6):
        numbers.write([step])
        torch.cuda._sleep(10_000_000)
        seen.append(numbers.values.clone())
        sent.append(flags.send((numbers.values % 2).view(())))
        if step:
            assert flags.read(sent[step - 1]) == bool((step - 1) % 2)
    assert torch.cat(seen).tolist() == [0, 1, 2, 3, 4, 5]
