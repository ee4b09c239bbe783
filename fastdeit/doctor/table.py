"""The table of checks, in their order."""

from fastdeit.doctor.checks import compilers, files, gpu, machine, network, packages, pictures
from fastdeit.doctor.checks.group import check_group
from fastdeit.doctor.findings import Check
from fastdeit.doctor.scratch import remove_scratch
from fastdeit.doctor.trial.trial import try_training

_TORCH = ("torch",)
_DALI = ("torch", "DALI")
_TRAINING = ("torch", "timm", "DALI", "DeepSpeed", "numba", "pyarrow", "Pillow")

CHECKS = (
    Check("system", machine.check_system),
    Check("cores", machine.check_cores),
    Check("memory", machine.check_memory),
    Check("shared memory", machine.check_shared_memory),
    Check("open files", machine.check_open_files),
    Check("clock", machine.check_clock),
    Check("encoding", machine.check_encoding),
    Check("caches", machine.check_caches),
    Check("versions", packages.check_versions, each_rank=True, differs="broken"),
    Check("two packages", packages.check_twins),
    *packages.list_imports(),
    Check("driver", gpu.check_driver, differs="warning"),
    Check("CUDA", gpu.check_cuda, _TORCH, each_rank=True, differs="warning"),
    Check("DALI's CUDA", gpu.check_dali, differs="broken"),
    Check("Triton's kernels", compilers.check_triton, ("torch", "triton"), 60, each_rank=True),
    Check("C compiler", compilers.check_compiler),
    Check("DeepSpeed's operators", compilers.check_deepspeed, ("torch", "DeepSpeed"), 60),
    Check("NCCL", network.check_nccl, _TORCH, differs="broken"),
    Check("variables", network.check_variables, each_rank=True),
    Check("names", network.check_names),
    Check("port", network.check_port),
    Check("output folder", files.check_output),
    Check("locks", files.check_locks, ("output folder",)),
    Check("writes", files.check_writes, ("output folder",)),
    Check("Pillow's JPEG", packages.check_pillow, ("Pillow",)),
    Check("DALI's JPEG", pictures.check_decoder, (*_DALI, "Pillow"), 60, each_rank=True),
    Check("data set", pictures.check_data, ("pyarrow", "Pillow"), 120),
    Check("disk", files.check_disk, ("pyarrow",), quick=False, limit_s=120),
)
"""The checks that each rank, or the first rank of each machine, runs alone."""
GROUP = Check("all ranks", check_group, _TORCH, 120, each_rank=True)
"""The check that the ranks of a launch run together."""
TRIAL = Check("training", try_training, _TRAINING, 180, each_rank=True, quick=False)
"""Ten seconds of training; the limit includes the imports, and a compilation of half a minute."""
CLEAN = Check("files left", remove_scratch)
"""The removal of the checks' files, at the end."""
_ALL = {check.name: check for check in (*CHECKS, GROUP, TRIAL, CLEAN)}


def find_check(name: str) -> Check:
    """Return a check by its name. Raises KeyError for an unknown name."""
    return _ALL[name]
