"""Triton's kernels compiled without a GPU, and counts of their code by its wheel's disassembler."""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from benchmarks.measuring.harness import Row
from fastdeit.kernels import launch_configs

_SHARED_PER_SM = {80: 164 * 1024, 90: 228 * 1024}
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class OfflineDriver:
    """A stand-in for Triton's driver of a GPU; the device's number is its architecture."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_device(self) -> int:
        return self.arch

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)


@contextmanager
def compiled_only(arch: int) -> Iterator[list[tuple[Any, dict[str, Any]]]]:
    """Make launches compile for sm_<arch> without a run; yield the list of compiled kernels.

    Use it in a separate process, as Triton does not release the driver.
    """
    found: list[tuple[Any, dict[str, Any]]] = []
    run = JITFunction.run
    launch_arch = launch_configs.arch

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        constants = {name: value for name, value in kwargs.items() if name.isupper()}
        found.append((kernel, constants))
        return kernel

    JITFunction.run = compile_only
    launch_configs.arch = lambda device: arch
    driver.set_active(OfflineDriver(arch))
    try:
        yield found
    finally:
        JITFunction.run = run
        launch_configs.arch = launch_arch


def _dump(kernel: Any, *options: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [str(_TOOLS / "cuobjdump"), *options, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _ctas_per_sm(registers: int, warps: int, shared: int, arch: int) -> int:
    """Return the number of CTAs that fit on one SM.

    64 K registers are allocated in units of 256 a warp; 1 KiB of shared memory a CTA is reserved.
    """
    per_warp = -(-registers * 32 // 256) * 256
    by_registers = 65536 // (per_warp * warps)
    by_shared = _SHARED_PER_SM[arch] // (shared + 1024)
    return min(by_registers, by_shared, 64 // warps, 32)


def measure(kernel: Any, arch: int) -> Row:
    """Return the counts of `resources.COUNTS` of one compiled kernel."""
    usage = _dump(kernel, "-res-usage")
    code = _dump(kernel, "-sass")
    registers, stack = (int(re.findall(rf"{name}:(\d+)", usage)[-1]) for name in ("REG", "STACK"))
    warps = kernel.metadata.num_warps
    shared = kernel.metadata.shared

    def count(pattern: str) -> int:
        return len(re.findall(rf"\b{pattern}", code))

    return {
        "registers": registers,
        "stack": stack,
        "shared": shared,
        "warps": warps,
        "ctas_per_sm": _ctas_per_sm(registers, warps, shared, arch),
        "wgmma": count("HGMMA"),
        "mma": count("HMMA"),
        "loads": count("LDG") + count("LDGSTS"),
        "loads_128": count(r"LDG\S*\.128") + count(r"LDGSTS\S*\.128"),
        "stores": count("STG"),
        "stores_128": count(r"STG\S*\.128"),
    }
