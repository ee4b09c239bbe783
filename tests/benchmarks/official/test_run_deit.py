"""What run_deit.py changes for deit, without deit."""

import subprocess
import sys

from benchmarks.official.commands import WRAPPER

SCRIPT = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
import run_deit, torch
assert not {name.partition(".")[0] for name in sys.modules} & {"fastdeit", "benchmarks", "timm"}
run_deit.restore_torch_six()
from torch._six import container_abcs, inf, int_classes, string_classes
assert isinstance([], container_abcs.Iterable) and inf > 1e300
run_deit.skip_synchronize()
torch.cuda.is_available() or torch.cuda.synchronize()
"""


def test_the_shims_need_neither_deit_nor_fastdeit() -> None:
    command = [sys.executable, "-c", SCRIPT, str(WRAPPER.parent)]
    subprocess.run(command, check=True)
