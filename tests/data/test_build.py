"""Decoding and backend where the settings say `auto`: by device and threads; no GPU is needed."""

import pytest
import torch

from fastdeit.config.schema import Config
from fastdeit.data.build import pipeline_options
from fastdeit.data.graphs.options import PipelineOptions
from fastdeit.distributed.world import World

PLACES = ("auto", "cpu", "gpu")


def options_of(
    device: str,
    threads: int = 0,
    backend: str = "auto",
    decoder: str = "auto",
    augment_device: str = "auto",
) -> PipelineOptions:
    config = Config().replace(
        data={"num_workers": threads, "decoder": decoder},
        augment={"augment_backend": backend, "augment_device": augment_device},
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


@pytest.mark.parametrize("threads", [1, 8])
@pytest.mark.parametrize("backend", ["auto", "exact"])
@pytest.mark.parametrize("decoder", ["auto", "cpu", "mixed", "hardware"])
def test_the_exact_backend_augments_on_the_gpu_where_asked(
    threads: int, backend: str, decoder: str
) -> None:
    options = options_of("cuda:1", threads, backend, decoder, "gpu")
    assert (options.backend, options.uses_kernels, options.device) == ("exact", True, "gpu")
    assert options.decoder == ("cpu" if decoder == "auto" else decoder)


def test_pixels_are_described_alike_wherever_they_are_made() -> None:
    """A run may change --augment-device when it is resumed."""
    described = {options_of("cuda:0", 8, "exact", "cpu", place).describe() for place in PLACES}
    assert described == {options_of("cpu").describe()}


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_a_gpu_that_augments_must_be_asked_for(device: str) -> None:
    assert not options_of(device, 8, augment_device="auto").uses_kernels
    assert not options_of(device, 8, augment_device="cpu").uses_kernels


def test_few_threads_augment_exactly_where_the_cpu_is_asked_for() -> None:
    assert options_of("cuda:0", 2, augment_device="cpu").backend == "exact"


@pytest.mark.parametrize(
    ("device", "backend", "augment_device", "message"),
    [
        ("cpu", "auto", "gpu", "--augment-device must be auto or cpu where there is no GPU"),
        ("cpu", "exact", "gpu", "--augment-device must be auto or cpu where there is no GPU"),
        ("cuda:0", "native", "cpu", "--augment-device must be auto or gpu with --augment-backend"),
    ],
)
def test_a_device_that_cannot_augment_is_refused(
    device: str, backend: str, augment_device: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        options_of(device, 2, backend, "auto", augment_device)
