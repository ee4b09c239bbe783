"""What the machine itself can do, which every other figure is read against: python -m
benchmarks.bench_ceilings [--out FOLDER]

A copy on the device, one from pinned memory of the host to it, and a bf16 matrix product. Versions
are printed first, for a package that is missing or of another version explains most surprises.
"""

import argparse
import os
import platform
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import harness

MIB = {"cuda": 256, "cpu": 16}
"""Copied from the host."""
SIDE = {"cuda": 8192, "cpu": 512}
"""Of the two matrices."""
ALSO = (
    "torchvision",
    "timm",
    "numpy",
    "pillow",
    "numba",
    "pyarrow",
    "psutil",
    "tyro",
    "pydantic",
    "pytest",
    "hypothesis",
)


def describe(device: torch.device) -> str:
    """Versions, cores and device in two lines."""
    versions = ", ".join(
        f"{name} {harness.installed(name) or 'MISSING'}" for name in (*harness.PACKAGES, *ALSO)
    )
    cores = f"Python {platform.python_version()} on {len(os.sched_getaffinity(0))} cores, {harness.device_name(device)}"
    return f"{versions}\n{cores}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"


def from_host(mib: int, device: torch.device) -> Callable[[], object]:
    source = torch.ones(mib << 20, dtype=torch.uint8, pin_memory=device.type == "cuda")
    target = torch.empty_like(source, device=device)
    return lambda: target.copy_(source, non_blocking=True)


def product(side: int, device: torch.device) -> Callable[[], object]:
    """Of random numbers: zeros would draw less power, and so run faster."""
    left, right = torch.randn(2, side, side, device=device).bfloat16()
    return lambda: left @ right


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=harness.RESULTS, help="folder of the results")
    out = parser.parse_args().out
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(describe(device), flush=True)
    mib, side, copy = MIB[device.type], SIDE[device.type], harness.copy_gbps(device)
    calls = {
        "from host": (from_host(mib, device), mib << 20, f"{mib} MiB", "uint8"),
        "matmul": (product(side, device), 3 * 2 * side**2, f"{side}x{side}x{side}", "bf16"),
    }
    stamp, found = harness.environment(device), {}
    for name, (call, nbytes, shape, dtype) in calls.items():
        what = {"bench": "ceiling", "mode": name, "impl": "torch", "shape": shape, "dtype": dtype}
        found[name] = harness.measure(call, device, images=0, nbytes=nbytes, copy=copy)
        harness.append([stamp | what | found[name]], device, out)
    tflops = 2 * side**3 / float(found["matmul"]["ms_p50"]) / 1e9
    print(
        f"copy {copy:.0f} GB/s, from the host {found['from host']['gbps']} GB/s, bf16 product {tflops:.3g} TFLOP/s"
    )


if __name__ == "__main__":
    main()
