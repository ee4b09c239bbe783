"""Checks of the compilers at run time: for Triton's kernels, and for the operators of DeepSpeed."""

import importlib.util
import os
import shutil
import time
from pathlib import Path

from fastdeit.doctor.findings import Finding, Target, fail, good, warn, warn_of
from fastdeit.doctor.scratch import open_any_scratch
from fastdeit.storage.urls import find_user_cache

_ARCH = 90
_FAR = 1e-5  # relative error of an fp32 kernel
_TABLE = "__compatible_ops__"


def check_triton(target: Target) -> Finding:
    """Compile a kernel and run it: on a GPU, or in Triton's interpreter; without either compile it
    for an H100."""
    os.environ["TRITON_CACHE_DIR"] = str(open_any_scratch(target) / "triton")
    import torch
    import triton

    began = time.monotonic()
    if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
        return _run_kernel(f"Triton {triton.__version__}", began)
    _compile_kernel()
    seconds = time.monotonic() - began
    found = f"Triton {triton.__version__} compiles a kernel for sm_{_ARCH} in {seconds:.1f} s"
    return good(f"{found}; no GPU to run it")


def _run_kernel(name: str, began: float) -> Finding:
    import torch

    from fastdeit.kernels.backend import use_backend
    from fastdeit.kernels.gelu import gelu, gelu_reference

    on_gpu = torch.cuda.is_available()
    x = torch.linspace(-4, 4, 4096, device="cuda" if on_gpu else "cpu").view(64, 64)
    try:
        with use_backend("triton"):
            error = float((gelu(x) - gelu_reference(x)).abs().max())
    # a compiler may raise any error
    except Exception as fault:
        return _explain_failure(name, fault)
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    place = "in the interpreter" if interpreted else "on the GPU"
    found = f"{name} runs a kernel {place}, {time.monotonic() - began:.1f} s"
    if not error < _FAR:
        wrong = f"{found}, with an error of {error:.1e}"
        return fail(wrong, "use --kernels reference, and report the versions of GPU and driver")
    return good(found)


def _explain_failure(name: str, fault: Exception) -> Finding:
    reason = " ".join(f"{type(fault).__name__}: {fault}".split())[-200:]
    if find_compiler():
        return fail(f"{name}: {reason}", "use --kernels reference meanwhile")
    cure = "install gcc, or set CC: Triton compiles the start of each kernel with it"
    return fail(f"{name}: no C compiler; {reason}", cure)


def _compile_kernel() -> None:
    """Compile a kernel for an H100, with the ptxas of Triton's wheel. Raises as Triton does."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fastdeit.kernels.row_sums import _sum_partials_kernel as kernel

    constants = {"D": 16, "BLOCK_P": 16, "BLOCK_D": 16}
    types = {name: "i32" if name == "P" else "*fp32" for name in kernel.arg_names}
    types |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, types, constants)
    triton.compile(source, target=GPUTarget("cuda", _ARCH, 32))


def check_compiler(target: Target) -> Finding:
    """Look for a C compiler: on a GPU Triton needs one, on a CPU torch.compile does."""
    found = find_compiler()
    if found:
        return good(found)
    user = "Triton's kernels need one" if target.gpus else "only --compile on needs one here"
    cure = "apt-get install gcc, or set CC"
    return (fail if target.gpus else warn)(f"no C compiler: {user}", cure)


def find_compiler() -> str:
    """Return the path of the C compiler that Triton uses, or ""."""
    names = [os.environ["CC"]] if os.environ.get("CC") else ["clang", "gcc", "cc"]
    return next((path for name in names if (path := shutil.which(name))), "")


def check_deepspeed(target: Target) -> Finding:
    """Check DeepSpeed's accelerator, the operators that a start would build, and locks that a build
    has left."""
    import torch

    from fastdeit.distributed.world import import_deepspeed

    deepspeed = import_deepspeed()
    name = deepspeed.accelerator.get_accelerator().device_name()
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    found = f"DeepSpeed {deepspeed.__version__}, accelerator {name}"
    faults = []
    if name != expected:
        wrong = f"the device here is {expected}"
        faults.append((wrong, f"unset DS_ACCELERATOR, or set it to {expected}"))
    if name == "cpu" and vars(deepspeed.ops)[_TABLE].get("deepspeed_shm_comm"):
        faults.append(("its start compiles deepspeed_shm_comm", "report DeepSpeed's version"))
    locks = find_locks()
    if locks:
        cure = f"rm {' '.join(map(str, locks))}, if no build is running: a build waits without end"
        faults.append((f"{len(locks)} locks of a build", cure))
    if faults:
        return warn_of(found, faults)
    ninja = "ninja" if importlib.util.find_spec("ninja") else "no ninja"
    nvcc = "nvcc" if shutil.which("nvcc") else "no nvcc"
    return good(f"{found}; training builds no operator ({ninja}, {nvcc})")


def find_locks() -> list[Path]:
    """Return the locks of torch's builds of C++ extensions."""
    home = find_user_cache()
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or home / "torch_extensions")
    return sorted(folder.glob("**/lock")) if folder.is_dir() else []
