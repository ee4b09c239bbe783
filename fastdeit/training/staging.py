"""Numbers that pass between host and device beside a step, without a wait: learning rates to the
device, flags back."""

from collections.abc import Sequence

import torch

SLOTS = 2
"""The largest number of steps whose numbers are under way at once: the host waits for a step before
it stages the numbers of the second one after it."""


class StagedNumbers:
    """fp32 numbers on the device that the host sets before a step, through pinned memory."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.values = torch.zeros(count, device=device)
        """The numbers on the device, fp32 (count,), always in the same memory."""
        self._staged = _host_memory(SLOTS, count, device)
        self._written = self._staged.numpy()
        self._slot = 0
        self._last: list[float] | None = None

    def write(self, numbers: Sequence[float]) -> None:
        """Set the numbers for what is launched from now on."""
        if self._last == list(numbers):
            return
        self._last = list(numbers)
        self._slot = (self._slot + 1) % SLOTS
        self._written[self._slot] = numbers
        self.values.copy_(self._staged[self._slot], non_blocking=True)


class StagedFlags:
    """The last `SLOTS` flags on their way from the device to the host."""

    def __init__(self, device: torch.device) -> None:
        self._staged = _host_memory(SLOTS, 1, device)
        self._read = self._staged.numpy()
        self._events = _make_events() if device.type == "cuda" else []
        self._sent = 0

    def send(self, flag: torch.Tensor) -> int:
        """Copy a 0-d fp32 flag to the host after all that is launched up to now; return its number
        for `read`."""
        slot = self._sent % SLOTS
        self._staged[slot, 0].copy_(flag, non_blocking=True)
        if self._events:
            self._events[slot].record()
        self._sent += 1
        return self._sent - 1

    def read(self, number: int) -> bool:
        """Return one of the last `SLOTS` flags; waits until the device has sent it."""
        assert number >= self._sent - SLOTS, "the flag was overwritten"
        slot = number % SLOTS
        if self._events:
            self._events[slot].synchronize()
        return bool(self._read[slot, 0])


def _make_events() -> list[torch.cuda.Event]:
    # a thread that waits sleeps, and others of the process run
    return [torch.cuda.Event(blocking=True) for _ in range(SLOTS)]


def _host_memory(rows: int, columns: int, device: torch.device) -> torch.Tensor:
    return torch.zeros(rows, columns, pin_memory=device.type == "cuda")
