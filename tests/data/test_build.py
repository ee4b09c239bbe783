"""Decoding and backend where the settings say `auto`: by device and threads; no GPU is needed."""

import pytest
import torch

from fastdeit.config.schema import Config
from fastdeit.data.build import pipeline_options
from fastdeit.data.graphs.options import PipelineOptions
from fastdeit.distributed.world import World


def options_of(
    device: str, threads: int = 0, backend: str = "auto", decoder: str = "auto"
) -> PipelineOptions:
    config = Config().replace(
        data={"num_workers": threads, "decoder": decoder}, augment={"augment_backend": backend}
    )
    return pipeline_options(config, World(0, 1, 0, 1, torch.device(device)))


@pytest.mark.parametrize(
    ("threads", "expected"),
    [(1, ("native", "mixed")), (7, ("native", "mixed")), (8, ("exact", "cpu"))],
)
def test_a_gpu_with_few_threads_gets_dalis_own_operators(
    threads: int, expected: tuple[str, str]
) -> None:
    options = options_of("cuda:1", threads)
    assert (options.backend, options.decoder) == expected
    assert (options.device, options.device_id, options.num_threads) == ("gpu", 1, threads)


@pytest.mark.parametrize("threads", [1, 7, 8])
def test_a_cpu_always_gets_the_exact_operators(threads: int) -> None:
    options = options_of("cpu", threads)
    assert (options.backend, options.decoder, options.device) == ("exact", "cpu", "cpu")
    assert options.device_id is None and options.num_threads == threads


def test_without_a_number_of_threads_the_machine_decides() -> None:
    world = World(0, 1, 0, 1, torch.device("cpu"))
    assert pipeline_options(Config(), world).num_threads == world.threads


@pytest.mark.parametrize(
    ("device", "backend", "decoder"),
    [
        ("cuda:0", "native", "cpu"),
        ("cuda:0", "native", "mixed"),
        ("cuda:0", "native", "hardware"),
        ("cuda:0", "exact", "cpu"),
        ("cpu", "native", "cpu"),
    ],
)
def test_what_is_asked_for_is_taken(device: str, backend: str, decoder: str) -> None:
    options = options_of(device, 2, backend, decoder)
    assert (options.backend, options.decoder) == (backend, decoder)


@pytest.mark.parametrize(
    ("device", "backend", "decoder"),
    [
        ("cuda:0", "exact", "mixed"),
        ("cuda:0", "exact", "hardware"),
        ("cpu", "native", "mixed"),
        ("cpu", "exact", "mixed"),
    ],
)
def test_a_decoder_that_the_backend_cannot_use_is_refused(
    device: str, backend: str, decoder: str
) -> None:
    place = "gpu" if device != "cpu" else "cpu"
    message = f"--decoder must be cpu with --augment-backend {backend} on a {place}"
    with pytest.raises(ValueError, match=message):
        options_of(device, 2, backend, decoder)
