"""The options of a pipeline: where and how it reads, decodes and augments."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastdeit.config.parse import require_value

if TYPE_CHECKING:
    from nvidia.dali import types

BACKENDS = ("exact", "native")
"""The backends: pixels equal to PIL's, or DALI's own operators."""
DECODERS: dict[str, dict[str, Any]] = {
    "cpu": {"device": "cpu"},
    "mixed": {"device": "mixed", "hw_decoder_load": 0.0},
    "hardware": {"device": "mixed", "hw_decoder_load": 1.0},
}
"""DALI's arguments for each decoder. The pixels of the GPU's JPEG engine differ from those of its
CUDA decoder, so a sample's pixels would depend on its batch if both were used: each decoder uses
one of them for all images."""


@dataclass(frozen=True)
class PipelineOptions:
    """The settings of a pipeline: device, threads, prefetch, backend, decoder and output.

    Raises ValueError for an unknown name.
    """

    mean: Sequence[float]
    """The mean of each channel, for values in 0..1; `std` likewise."""
    std: Sequence[float]
    batch_size: int = 1
    """The size of the largest batch. The loaders set it, and the last two fields."""
    device: str = "cpu"
    device_id: int | None = None
    num_threads: int = 2
    prefetch: int = 2
    backend: str = "exact"
    decoder: str = "cpu"
    uses_kernels: bool = False
    """Whether the exact backend is, in training, Triton kernels on `device` (on a CPU their
    references in plain torch), instead of one compiled operator on CPU threads; the pixels are the
    same."""
    read_ahead: bool = False
    """Whether a thread makes the next batch while the caller uses the present one."""
    feeds_paths: bool = True
    """Whether the source gives paths of files, not encoded images."""
    knows_sizes: bool = False
    """Whether the source gives, right after the images, the height and width that each must have,
    int32 (B, 2)."""

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
        """Return the backend and the decoder, which decide the pixels, in words."""
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
