"""The costs of the store, of joining a group and of its collectives, on this machine."""

import multiprocessing
import socket
import statistics
import threading
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.launch.model import ROLL_MESSAGES
from fastdeit.distributed.roll_call import call_roll

LIMIT = timedelta(seconds=300)
REPEATS = 20


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def connect(port: int, serves: bool) -> dist.TCPStore:
    """Return the store at a port of this machine; serves: whether this process serves it."""
    return dist.TCPStore("127.0.0.1", port, is_master=serves, timeout=LIMIT, wait_for_workers=False)


def measure_roll_call(ranks: int) -> float:
    """Return the CPU microseconds of the store for a message of the roll call; its clients are
    threads of another process."""
    port = free_port()
    serving = connect(port, serves=True)
    began = time.process_time()
    child = multiprocessing.get_context("fork").Process(target=answer_roll, args=(port, ranks))
    child.start()
    child.join()
    took = time.process_time() - began
    del serving
    return 1e6 * took / (ROLL_MESSAGES * ranks)


def answer_roll(port: int, ranks: int) -> None:
    """Call the roll of all ranks."""
    stores = [connect(port, serves=False) for _ in range(ranks)]
    threads = [
        threading.Thread(target=call_roll, args=(store, rank, ranks))
        for rank, store in enumerate(stores)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def time_group(rank: int, ranks: int, port: int, results: Any) -> None:
    """Put the CPU seconds of joining a group, of a vote and of gathering objects into `results`."""
    torch.set_num_threads(1)
    store = connect(port, rank == 0)
    marks = [time.process_time()]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=LIMIT)
    dist.barrier()
    marks.append(time.process_time())
    for _ in range(REPEATS):
        dist.all_reduce(torch.ones(1))
    marks.append(time.process_time())
    for _ in range(REPEATS):
        dist.all_gather_object([None] * ranks, (None, None))
    marks.append(time.process_time())
    joined, voted, gathered = (
        later - earlier for earlier, later in zip(marks, marks[1:], strict=False)
    )
    results.put((joined, voted / REPEATS, gathered / REPEATS))
    dist.barrier()


def measure_group(ranks: int) -> list[float]:
    """Return the medians over the ranks of the values of `time_group`."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    port = free_port()
    processes = [
        context.Process(target=time_group, args=(rank, ranks, port, results))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return [statistics.median(values) for values in zip(*found, strict=True)]
