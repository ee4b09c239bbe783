"""Equality to the bit on other processors: tests run again with the code paths of another one.

ATen, oneDNN, MKL, NumPy, OpenBLAS, numba's LLVM, libjpeg-turbo and glibc choose their code by the
processor; environment variables override the choice. tests/support/imagined_processor.py shows
differences that no older code path has. The short form runs tests of a few modules, the full-length
form all files that compare bits.
"""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.launching import FOREIGN, ROOT

AVX2 = {"avx2", "fma"}
_CONFIG: Any = np.show_config(mode="dicts")
_SIMD = _CONFIG["SIMD Extensions"].get("found", [])

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
"""Environment variables that set the processor of a process, by name."""

SHORT = (
    "tests/training/test_losses.py",
    "tests/models/test_initialisation.py::test_weights_are_the_same_bits_everywhere",
    "tests/plan/test_digest.py::test_the_digest_is_the_same_on_every_machine",
)
COMPARISON = re.compile(
    r"torch\.equal|array_equal|atol=0\b|same_files|assert_same|assert_equal|sha256\("
)

OUTSIDE_MODES = re.compile("TapeRecorder|check_compiler")


def run_tests(setting: str, tests: list[str]) -> None:
    """Run tests on a processor; fail with the end of pytest's output."""
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
    pytest_alone = [sys.executable, "-m", "pytest", "--tb=short", "-p", "no:cacheprovider"]
    command = [*pytest_alone, *plugin, *tests]
    environment = kept | SETTINGS[setting]
    end = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert end.returncode == 0, (
        f"on the processor {setting!r}:\n{end.stdout[-6000:]}{end.stderr[-2000:]}"
    )


def comparing(setting: str) -> list[str]:
    """Return the test files that compare bits.

    For the imagined processor, which changes torch alone, exclude kernels: NumPy interprets them;
    and what runs outside of torch's modes, as replayed tapes and compiled code do.
    """
    paths = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if path != Path(__file__)]
    if setting == "imagined":
        paths = [path for path in paths if "kernels" not in str(path.relative_to(ROOT))]
        paths = [path for path in paths if not OUTSIDE_MODES.search(path.read_text())]
    return [str(path.relative_to(ROOT)) for path in paths if COMPARISON.search(path.read_text())]


def test_variables_set_the_processor() -> None:
    code = (
        "import numpy, torch; from numba.core.registry import cpu_target\n"
        "print(torch.backends.cpu.get_cpu_capability(),"
        " cpu_target.target_context.codegen().magic_tuple()[1:],"
        " numpy.show_config(mode='dicts')['SIMD Extensions'].get('found', []))"
    )
    if platform.machine() != "x86_64":
        pytest.skip("instructions of x86-64")
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | SETTINGS["oldest"],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "DEFAULT ('x86-64', '') []\n", done.stdout + done.stderr


def test_tests_of_modules_pass_on_the_oldest_processor() -> None:
    run_tests("oldest", list(SHORT))


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_all_files_that_compare_bits_pass_on_another_processor(setting: str) -> None:
    run_tests(setting, comparing(setting))
