"""GPUs by the names of `--gpu`: their published peaks, and the rates that kernels reach of them.

Source: NVIDIA's data sheets. Memory in 10^9 bytes, its bandwidth in 10^12 bytes/s; the peak in
dense bf16 is that of `PEAK_TFLOPS`. Link: 10^9 bytes/s each way to the other GPUs of the machine,
NVLink or PCIe (16 lanes).
"""

from typing import NamedTuple

from fastdeit.config.parse import require_value
from fastdeit.estimate.roofline import H100, Device
from fastdeit.training.flops import PEAK_TFLOPS
from fastdeit.training.zero.links import Links

_LINK_SHARE = 0.8
"""Of a link's published bandwidth, which a ring reaches."""


class Gpu(NamedTuple):
    """Published figures of a GPU; peak: its name in `PEAK_TFLOPS`."""

    peak: str
    memory_gb: float
    tb_per_s: float
    link_gbps: float

    @property
    def tflops(self) -> float:
        return PEAK_TFLOPS[self.peak]

    def reached(self) -> Device:
        """Return the rates that kernels reach: the shares of the peaks that `H100` has."""
        peak = GPUS["h100"]
        return Device(
            bytes_per_s=H100.bytes_per_s * self.tb_per_s / peak.tb_per_s,
            flops_per_s=H100.flops_per_s * self.tflops / peak.tflops,
        )

    def links(self, per_machine: int) -> Links:
        """Return the links of such GPUs, so many in a machine; those between machines are the
        defaults of `Links`."""
        return Links(per_machine, inside_gbps=_LINK_SHARE * self.link_gbps)


GPUS = {
    "b200": Gpu("B200", 180, 8.0, 900),
    "h200": Gpu("H200", 141, 4.8, 450),
    "h100": Gpu("H100", 80, 3.35, 450),
    "h100-nvl": Gpu("H100 NVL", 94, 3.9, 300),
    "h100-pcie": Gpu("H100 PCIe", 80, 2.0, 64),
    "a100": Gpu("A100", 80, 2.039, 300),
    "a100-40gb": Gpu("A100", 40, 1.555, 300),
    "a10g": Gpu("A10G", 24, 0.6, 32),
    "l40s": Gpu("L40S", 48, 0.864, 32),
    "l4": Gpu("L4", 24, 0.3, 32),
    "rtx-5090": Gpu("RTX 5090", 32, 1.792, 64),
    "rtx-4090": Gpu("RTX 4090", 24, 1.008, 32),
    "rtx-3090": Gpu("RTX 3090", 24, 0.936, 32),
}
CPU = "cpu"


def find_gpu(name: str) -> Gpu | None:
    """Return the GPU of a name, upper case or "4090" for "rtx-4090" too; None for "cpu". Raises
    ValueError, listing the names, for another one."""
    wanted = name.lower().replace(" ", "-").replace("_", "-")
    if wanted == CPU:
        return None
    known = wanted if wanted in GPUS else f"rtx-{wanted}"
    require_value(known in GPUS, "--gpu", name, f"one of {', '.join(GPUS)}, {CPU}")
    return GPUS[known]
