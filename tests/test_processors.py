"""Equality to the bit must not depend on the processor: the tests once more, in processes that are
told of another one.

ATen, oneDNN, MKL, NumPy, OpenBLAS, numba's LLVM, libjpeg-turbo and glibc choose their code by the
processor, and take orders by environment variables. What no older code shows,
tests/support/imagined_processor.py does. The short form runs tests of a few modules, the
full-length one all files that compare bits.
"""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.launching import FOREIGN, ROOT

AVX2 = {"avx2", "fma"}
_SIMD = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])  # type: ignore[index,call-overload]

SETTINGS = {
    "oldest": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_CBWR": "COMPATIBLE",
        "OPENBLAS_CORETYPE": "Nehalem",
        "NPY_DISABLE_CPU_FEATURES": " ".join(_SIMD),
        "NUMBA_CPU_NAME": "x86-64",
        "NUMBA_CPU_FEATURES": "",
        "JSIMD_FORCESSE2": "1",
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX2,-FMA,-FMA4",
    },
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_CBWR": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
        "NPY_DISABLE_CPU_FEATURES": " ".join(
            name for name in _SIMD if "V4" in name or "512" in name
        ),
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "",
    },
    "two threads": {"OMP_NUM_THREADS": "2"},
    "imagined": {},
}
"""What a process is told of its processor, by name."""

SHORT = {
    "oldest": (
        *(
            "tests/models/test_teacher.py",
            "tests/training/test_losses.py",
            "tests/plan/test_plan.py",
            "tests/data/augment/test_sample.py",
        ),
        "tests/plan/test_digest.py::test_the_digest_is_the_same_on_every_machine",
    ),
    "imagined": (
        "tests/models/test_teacher.py",
        "tests/models/test_student.py",
        "tests/training/test_losses.py",
        "tests/training/test_trainer.py",
    ),
}
COMPARISON = re.compile(
    r"torch\.equal|array_equal|atol=0\b|same_files|assert_same|assert_equal|sha256\("
)


def run_tests(setting: str, tests: list[str]) -> None:
    """Fails with the end of what pytest says."""
    if setting in ("oldest", "avx2") and platform.machine() != "x86_64":
        pytest.skip("instructions of x86-64")
    if setting == "avx2" and not set(Path("/proc/cpuinfo").read_text().split()) >= AVX2:
        pytest.skip("this processor has no AVX2")
    plugin = ["-p", "tests.support.imagined_processor"] if setting == "imagined" else []
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in FOREIGN and not name.startswith("PYTEST")
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--tb=short",
        "-p",
        "no:cacheprovider",
        *plugin,
        *tests,
    ]
    end = subprocess.run(
        command, cwd=ROOT, env=kept | SETTINGS[setting], capture_output=True, text=True
    )
    assert end.returncode == 0, (
        f"on the processor {setting!r}:\n{end.stdout[-6000:]}{end.stderr[-2000:]}"
    )


def comparing(setting: str) -> list[str]:
    """The test files that compare bits. Interpreted kernels compute in NumPy, where nothing is
    imagined."""
    paths = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if path != Path(__file__)]
    found = [str(path.relative_to(ROOT)) for path in paths if COMPARISON.search(path.read_text())]
    return [path for path in found if setting != "imagined" or "kernels" not in path]


def test_a_process_has_the_processor_that_it_is_told_of() -> None:
    code = (
        "import numpy, torch; from numba.core.registry import cpu_target\n"
        "print(torch.backends.cpu.get_cpu_capability(), cpu_target.target_context.codegen().magic_tuple()[1:],"
        " numpy.show_config(mode='dicts')['SIMD Extensions'].get('found', []))"
    )
    if platform.machine() != "x86_64":
        pytest.skip("instructions of x86-64")
    said = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | SETTINGS["oldest"],
        capture_output=True,
        text=True,
    )
    assert said.stdout == "DEFAULT ('x86-64', '') []\n", said.stdout + said.stderr


@pytest.mark.parametrize("setting", SHORT)
def test_tests_of_modules_pass_on_another_processor(setting: str) -> None:
    run_tests(setting, list(SHORT[setting]))


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_all_that_compare_bits_pass_on_another_processor(setting: str) -> None:
    run_tests(setting, comparing(setting))
