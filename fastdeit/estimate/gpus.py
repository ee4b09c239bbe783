"""The devices of a run: GPUs by the names of `--gpu`, their published peaks, and the rates that
kernels reach.

Source: NVIDIA's data sheets and white papers, which docs/estimate.md names for each. Memory is in
10^9 bytes, its bandwidth in 10^12 bytes/s; the peak in dense bf16 is that of `PEAK_TFLOPS`. The
bandwidth of a link is in 10^9 bytes/s each way to the other GPUs of the machine, by NVLink or PCIe
(16 lanes).
"""

from typing import NamedTuple

import torch

from fastdeit.config.parse import require_value
from fastdeit.distributed.world import World
from fastdeit.estimate.roofline import H100, Device
from fastdeit.training.flops import PEAK_TFLOPS
from fastdeit.training.zero.links import Links

_LINK_SHARE = 0.8
"""The share of a link's published bandwidth that a ring reaches."""


class Gpu(NamedTuple):
    """The published figures of a GPU; peak: its name in `PEAK_TFLOPS`."""

    peak: str
    memory_gb: float
    tb_per_s: float
    link_gb_per_s: float

    @property
    def tflops(self) -> float:
        return PEAK_TFLOPS[self.peak]

    def reached(self) -> Device:
        """Return the rates that kernels reach: the same shares of the peaks as on an `H100`."""
        peak = GPUS["h100"]
        return Device(
            bytes_per_s=H100.bytes_per_s * self.tb_per_s / peak.tb_per_s,
            flops_per_s=H100.flops_per_s * self.tflops / peak.tflops,
        )

    def links(self, per_machine: int) -> Links:
        """Return the links of such GPUs, with `per_machine` in a machine; those between machines
        are the defaults of `Links`."""
        return Links(per_machine, inside_gbps=_LINK_SHARE * self.link_gb_per_s)


GPUS = {
    "b200": Gpu("B200", 180, 7.7, 900),
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
    """Return the GPU of a name, also in upper case, or "4090" for "rtx-4090"; None for "cpu".
    Raises ValueError, which lists the names, for an unknown name."""
    wanted = name.lower().replace(" ", "-").replace("_", "-")
    if wanted == CPU:
        return None
    known = wanted if wanted in GPUS else f"rtx-{wanted}"
    require_value(known in GPUS, "--gpu", name, f"one of {', '.join(GPUS)}, {CPU}")
    return GPUS[known]


class Devices(NamedTuple):
    """The devices of a run: `ranks` GPUs, `per_machine` in a machine; if gpu is None, processes on
    a CPU."""

    name: str
    gpu: Gpu | None
    ranks: int
    per_machine: int

    @property
    def unit(self) -> str:
        """Return the unit of the hours of all devices together."""
        return "core-hours" if self.gpu is None else "GPU-hours"

    def world(self) -> World:
        """Return the world of the first rank; this machine need not have the device."""
        device = torch.device("cpu" if self.gpu is None else "cuda")
        return World(0, self.ranks, 0, min(self.ranks, self.per_machine), device)


def make_devices(name: str, gpu: Gpu | None, ranks: int, per_machine: int) -> Devices:
    """Return the devices of a run. Raises ValueError, which names the flag, for numbers that are
    not possible."""
    require_value(ranks >= 1, "--gpus", ranks, "1 or more")
    require_value(per_machine >= 1, "--gpus-per-machine", per_machine, "1 or more")
    whole = ranks <= per_machine or ranks % per_machine == 0
    allowed = f"at most {per_machine}, or a multiple of it (--gpus-per-machine)"
    require_value(whole, "--gpus", ranks, allowed)
    return Devices("CPU process" if gpu is None else name.upper(), gpu, ranks, per_machine)
