"""Times and counts of a whole training step."""

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measuring.counting import StepCounter, count_waits, kernel_spans, uncovered_pct
from benchmarks.measuring.harness import Row

TIMED = 20
"""The number of timed steps, after `COUNTED` steps of warm-up."""
COUNTED = 5
"""The number of steps over which launches, waits and host time are measured."""
Step = Callable[[], torch.Tensor]


def step_times_ms(step: Step, device: torch.device) -> list[float]:
    """Return the milliseconds between consecutive steps, after some steps of warm-up."""
    for _ in range(COUNTED):
        step()
    marks = [_mark(device)]
    for _ in range(TIMED):
        step()
        marks.append(_mark(device))
    if device.type == "cuda":
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in itertools.pairwise(marks)]
    return [1e3 * (end - start) for start, end in itertools.pairwise(marks)]


def _mark(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.process_time()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def find_quantiles(times: list[float]) -> tuple[float, float, float]:
    """Return the quantiles of 20, 50 and 80 %."""
    p20, _, _, p80 = statistics.quantiles(times, n=5)
    return p20, statistics.median(times), p80


def host_ms(step: Step, device: torch.device) -> float:
    """Return the median CPU milliseconds of a step that starts on an idle device."""
    times = []
    for _ in range(COUNTED):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.process_time()
        step()
        times.append(1e3 * (time.process_time() - start))
    return statistics.median(times)


def count_on_cpu(step: Step) -> Row:
    """Return the operators and the reads of a step."""
    with StepCounter() as counter:
        step()
    return {"launches": counter.launches, "waits": counter.waits}


def count_on_gpu(step: Step) -> Row:
    """Return the waits of a step and, where profiling is allowed, launches and idle time."""
    waits = count_waits(step)
    spans = kernel_spans(step, COUNTED)
    if not spans:  # a machine may forbid profiling
        return {"waits": waits}
    return {
        "waits": waits,
        "launches": round(len(spans) / COUNTED),
        "idle_pct": float(f"{uncovered_pct(spans):.3g}"),
    }
