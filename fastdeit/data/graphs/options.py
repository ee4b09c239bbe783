"""Where and how a pipeline reads, decodes and augments."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastdeit.config.parse import require_value

if TYPE_CHECKING:
    from nvidia.dali import types

BACKENDS = ("exact", "native")
DECODERS: dict[str, dict[str, Any]] = {
    "cpu": {"device": "cpu"},
    "mixed": {"device": "mixed", "hw_decoder_load": 0.0},
    "hardware": {"device": "mixed", "hw_decoder_load": 1.0},
}
"""Where images are decoded. The GPU's own JPEG engine differs from its CUDA decoder, and a share
between them would make a sample's pixels depend on its batch: each decoder uses one of them for
all."""


@dataclass(frozen=True)
class PipelineOptions:
    """Settings of a pipeline: device, prefetch and output.

    Raises ValueError for an unknown name.
    """

    mean: Sequence[float]
    """Of each channel, for values in 0..1, as `std`."""
    std: Sequence[float]
    batch_size: int = 1
    """Largest batch; the loaders set it, and the last two fields."""
    device: str = "cpu"
    device_id: int | None = None
    num_threads: int = 2
    prefetch: int = 2
    backend: str = "exact"
    decoder: str = "cpu"
    uses_kernels: bool = False
    """True: the exact backend in training is Triton kernels on `device`, with the same pixels (on
    a CPU their references, in plain torch); False: one compiled operator on CPU threads."""
    read_ahead: bool = False
    """True: a thread makes the next batch while the caller uses the present one."""
    feeds_paths: bool = True
    """True: the source gives paths of files; False: encoded images."""
    knows_sizes: bool = False
    """True: the source gives, right after the images, int32 (B, 2): the height and width that
    each must have."""

    def __post_init__(self) -> None:
        choices = {"device": ("cpu", "gpu"), "backend": BACKENDS, "decoder": tuple(DECODERS)}
        for name, allowed in choices.items():
            value = getattr(self, name)
            require_value(value in allowed, name, value, f"one of {', '.join(allowed)}")
        on_device = self.backend == "native" or self.uses_kernels
        uses_gpu = self.device == "gpu" and on_device
        allowed_decoder = f"cpu with backend {self.backend} on a {self.device}"
        require_value(self.decoder == "cpu" or uses_gpu, "decoder", self.decoder, allowed_decoder)
        is_exact = self.backend == "exact" or not self.uses_kernels
        require_value(is_exact, "uses_kernels", self.uses_kernels, "False with backend native")

    def describe(self) -> str:
        """Return what decides the pixels, in words."""
        return f"{self.backend} backend, {self.decoder} decoder"

    @property
    def torch_device(self) -> str:
        """Return the device of the output, as torch names it."""
        return f"cuda:{self.device_id or 0}" if self.device == "gpu" else "cpu"

    @property
    def dtype(self) -> "types.DALIDataType":
        """Return the type of the output: float16 on a GPU, float32 on a CPU."""
        from nvidia.dali import types

        return types.FLOAT16 if self.device == "gpu" else types.FLOAT

    @property
    def dali(self) -> dict[str, Any]:
        """Return the arguments of nvidia.dali.Pipeline."""
        device_id = (self.device_id or 0) if self.device == "gpu" else None
        queue = {"batch_size": self.batch_size, "prefetch_queue_depth": self.prefetch}
        return {"num_threads": self.num_threads, "device_id": device_id, **queue}
