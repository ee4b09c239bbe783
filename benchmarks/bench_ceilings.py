"""Limits of the machine: copy bandwidth on the device and from the host in GB/s, bf16 matrix
product in TFLOP/s.

python -m benchmarks.bench_ceilings [--out FOLDER]

The other benchmarks' figures are compared with these. The copy from the host starts in pinned
memory. Versions are printed first: a missing package or another version explains most surprises.
"""

import os
import platform
from collections.abc import Callable

import torch

from benchmarks.measuring import harness

MIB = {"cuda": 256, "cpu": 16}
"""The size of the copy from the host."""
SIDE = {"cuda": 8192, "cpu": 512}
"""The number of rows and of columns of the two matrices."""
PACKAGES = (
    *harness.PACKAGES,
    *"torchvision timm numpy pillow numba pyarrow psutil tyro pydantic pytest hypothesis".split(),
)


def describe(device: torch.device) -> str:
    """Return versions, cores and device in two lines."""
    versions = [f"{name} {harness.installed(name) or 'MISSING'}" for name in PACKAGES]
    cores = f"Python {platform.python_version()} on {len(os.sched_getaffinity(0))} cores"
    cuda = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    return f"{', '.join(versions)}\n{cores}, {harness.device_name(device)}, {cuda}"


def from_host(mib: int, device: torch.device) -> Callable[[], object]:
    source = torch.ones(mib << 20, dtype=torch.uint8, pin_memory=device.type == "cuda")
    target = torch.empty_like(source, device=device)
    return lambda: target.copy_(source, non_blocking=True)


def product(side: int, device: torch.device) -> Callable[[], object]:
    """Return a product of random matrices: zeros need less power and would run faster."""
    left, right = torch.randn(2, side, side, device=device).bfloat16()
    return lambda: left @ right


def main() -> None:
    parser = harness.make_parser(__doc__)
    harness.add_out(parser)
    out = parser.parse_args().out
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(describe(device), flush=True)
    mib = MIB[device.type]
    side = SIDE[device.type]
    copy = harness.copy_gbps(device)
    calls = {
        "from host": (from_host(mib, device), mib << 20, f"{mib} MiB", "uint8"),
        "matmul": (product(side, device), 3 * 2 * side**2, f"{side}x{side}x{side}", "bf16"),
    }
    stamp = harness.environment(device)
    found = {}
    for name, (call, nbytes, shape, dtype) in calls.items():
        what = harness.case_columns("ceiling", name, shape, dtype, "torch")
        found[name] = harness.measure(call, device, images=0, nbytes=nbytes, copy=copy)
        harness.append([stamp | what | found[name]], device, out)
    tflops = 2 * side**3 / float(found["matmul"]["ms_p50"]) / 1e9
    from_host_gbps = found["from host"]["gbps"]
    print(
        f"copy {copy:.0f} GB/s, from the host {from_host_gbps} GB/s, "
        f"bf16 product {tflops:.3g} TFLOP/s"
    )


if __name__ == "__main__":
    main()
