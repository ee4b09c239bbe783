"""The house: which module may import which, and that no name of ours hides another's."""

import ast
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARY = sorted(path for path in (ROOT / "fastdeit").rglob("*.py") if "kernels" not in path.parts)
KERNELS = sorted((ROOT / "kernels").glob("*.py"))

# module (or package) -> what of the project it may import; a module that is not listed may import none of it
ALLOWED: dict[str, set[str]] = {
    # the run, from the commands down
    "train": {"ancestry", "distributed", "run"},
    "__main__": {"cache_command", "data.report", "preview", "replay.command", "run"},
    "run": {
        *(
            "build",
            "cache_check",
            "checkpoint_writer",
            "cli",
            "config",
            "console",
            "data.index",
            "distributed",
            "engine",
        ),
        *(
            "flags",
            "health",
            "identity",
            "loop",
            "models.cache",
            "models.manifest",
            "outcome",
            "plan",
            "preflight",
        ),
        *(
            "recovery",
            "resumption",
            "run_folder",
            "run_lock",
            "run_state",
            "supervision",
            "training.build",
        ),
    },
    "loop": {
        *(
            "cache_check",
            "checksum",
            "data.batch",
            "data.eval_loader",
            "digest",
            "evaluate",
            "health",
            "recovery",
        ),
        *("run_state", "supervision"),
    },
    "recovery": {
        "checkpoint",
        "distributed",
        "health",
        "identity",
        "metrics",
        "resumption",
        "rollback",
        "run_state",
    },
    "run_folder": {
        *(
            "attempts",
            "build",
            "checkpoint",
            "data.snapshot",
            "durable",
            "failure",
            "kernels.mix",
            "metrics",
            "outcome",
        ),
        *("recovery", "run_state", "training.build", "visualize"),
    },
    "run_state": {
        *(
            "checkpoint_writer",
            "config",
            "console",
            "data.eval_loader",
            "data.index",
            "data.loader",
            "data.quarantine",
        ),
        *(
            "distributed",
            "engine",
            "health",
            "identity",
            "metrics",
            "models.cache",
            "plan",
            "supervision",
        ),
    },
    "outcome": {"config", "console", "distributed", "models.student"},
    "preview": {
        *(
            "build",
            "cli",
            "config",
            "data.augment_exact",
            "data.index",
            "data.pil",
            "data.pipeline",
            "distributed",
        ),
        *("draws", "kernels.mix", "plan", "visualize"),
    },
    "replay.command": {
        *(
            "build",
            "cli",
            "config",
            "data.snapshot",
            "distributed",
            "engine",
            "flags",
            "identity",
            "preflight",
        ),
        *(
            "replay.files",
            "replay.record",
            "replay.report",
            "replay.samples",
            "replay.step",
            "run",
            "training.build",
        ),
    },
    "replay.record": {
        *(
            "attempts",
            "build",
            "checkpoint",
            "checkpoint_files",
            "config",
            "data.quarantine",
            "distributed",
            "failure",
        ),
        *("health", "metrics", "resumption", "rollback"),
    },
    "replay.samples": {
        *(
            "build",
            "config",
            "data.batch",
            "data.index",
            "data.loader",
            "data.quarantine",
            "digest",
            "distributed",
        ),
        *("identity", "plan", "replay.record", "run"),
    },
    "replay.step": {"data.batch", "data.index", "digest", "draws", "engine", "losses", "plan"},
    "replay.report": {"digest", "engine", "replay.record", "replay.samples", "replay.step"},
    "replay.files": {"data.batch", "kernels.mix"},
    "cache_command": {
        "cache_build",
        "cli",
        "models.cache",
        "models.cache_writer",
        "models.manifest",
    },
    "cache_build": {
        *(
            "build",
            "cache_check",
            "cli",
            "config",
            "data.index",
            "data.loader",
            "data.quarantine",
            "distributed",
        ),
        *(
            "identity",
            "kernels.backend",
            "models.cache",
            "models.cache_writer",
            "models.manifest",
            "models.teacher",
        ),
        *("plan", "preflight", "recording", "training.build"),
    },
    "recording": {
        "data.batch",
        "data.loader",
        "kernels.mix",
        "models.cache",
        "models.cache_writer",
        "models.manifest",
    },
    "cache_check": {
        *(
            "config",
            "data.index",
            "data.quarantine",
            "distributed",
            "models.cache",
            "models.manifest",
            "models.teacher",
        ),
        *("models.weights", "plan"),
    },
    "resumption": {"checkpoint", "checkpoint_files", "config_file"},
    "identity": {"config", "config_file", "data.index", "distributed", "plan"},
    "build": {
        *(
            "config",
            "data.digits",
            "data.eval_loader",
            "data.index",
            "data.loader",
            "data.pipeline",
            "data.quarantine",
        ),
        *(
            "data.snapshot",
            "distributed",
            "flags",
            "models.cache",
            "models.student",
            "models.teacher",
        ),
        *("models.weights", "plan", "training.build"),
    },
    "preflight": {"config", "flags", "models.student"},
    "cli": {"config", "config_file", "distributed", "recipes"},
    "config_file": {"config", "durable"},
    "recipes": {"config"},
    "config": {"flags"},
    # training
    "training.build": {
        *(
            "config",
            "deepspeed_config",
            "deepspeed_file",
            "distributed",
            "engine",
            "kernels.backend",
            "losses",
        ),
        *("models.cache", "models.teacher", "optim", "training.flat"),
    },
    "training.flat": {"kernels.distill"},
    "zero": {"training.flat"},
    "engine": {
        *(
            "data.batch",
            "digest",
            "distributed",
            "kernels.mix",
            "losses",
            "models.teacher",
            "optim",
            "training.flat",
        ),
        "zero",
    },
    "losses": {"kernels.distill"},
    "deepspeed_file": {"deepspeed_config", "distributed"},
    "digest": {"philox", "plan"},
    "plan": {"draws", "philox"},
    "draws": {"philox"},
    # what lasts, and what watches
    "checkpoint_writer": {"checkpoint", "checkpoint_files", "distributed"},
    "checkpoint": {"checkpoint_files", "tensor_files"},
    "metrics": {"durable"},
    "health": {"digest", "distributed", "durable", "engine", "metrics", "rollback"},
    "rollback": {"checkpoint", "checkpoint_files", "distributed", "durable", "resumption"},
    "failure": {"durable"},
    "supervision": {"ancestry", "distributed", "failure", "watchdog"},
    # the formats, from the table down
    "data.report": {"cli", "data.index", "data.layout", "data.listing", "data.table"},
    "data.index": {
        *(
            "data.check",
            "data.folder",
            "data.idx",
            "data.imagenet",
            "data.layout",
            "data.listing",
            "data.lists",
        ),
        *("data.shards", "data.table"),
    },
    "data.layout": {
        "data.check",
        "data.folder",
        "data.idx",
        "data.imagenet",
        "data.listing",
        "data.lists",
        "data.shards",
    },
    "data.lists": {"data.check", "data.folder", "data.listing"},
    "data.imagenet": {"data.check", "data.folder", "data.listing"},
    "data.folder": {"data.check", "data.listing"},
    "data.idx": {"data.check", "data.listing"},
    "data.shards": {"data.check", "data.listing"},
    "data.table": {"data.check", "data.listing", "durable"},
    "data.listing": {"data.check"},
    # the pixels, from the loader down
    "data.loader": {
        "data.batch",
        "data.index",
        "data.pipeline",
        "data.quarantine",
        "data.stream",
        "digest",
        "plan",
    },
    "data.stream": {"data.index", "data.pipeline", "data.quarantine"},
    "data.quarantine": {"data.index"},
    "data.snapshot": {"data.index", "data.listing", "durable"},
    "data.pipeline": {"data.augment_exact", "data.augment_native", "philox", "plan"},
    "data.augment_native": {"draws", "plan"},
    "data.augment_exact": {"data.pil_jit", "data.pil_sample", "draws", "plan"},
    "data.pil_sample": {
        "data.pil",
        "data.pil_jit",
        "data.pil_noise",
        "data.pil_ops",
        "data.pil_warp",
        "draws",
    },
    "data.pil": {"data.pil_jit"},
    "data.pil_jit": {"draws"},
    "data.pil_noise": {"data.pil_jit"},
    "data.pil_ops": {"data.pil_jit"},
    "data.pil_warp": {"data.pil_jit"},
    "data.eval_loader": {"data.index", "data.pipeline", "data.quarantine", "data.stream"},
    # the models
    "models.cache": {"models.manifest"},
    "models.cache_writer": {"models.cache", "models.manifest"},
    "models.manifest": {"durable"},
    "models.student": {"kernels.attention", "kernels.gelu", "kernels.norm"},
    "models.teacher": {"models.student", "models.weights"},
    "models.weights": {"models.student", "tensor_files"},
}
# third-party names that a low layer is limited to
ONLY: dict[str, set[str]] = {
    "plan": {"numpy"},
    "digest": {"numpy"},
    "draws": {"numpy"},
    "philox": {"numpy"},
    "config": set(),
    "flags": set(),
    "recipes": set(),
}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "fastdeit").with_suffix("").parts).removesuffix(
        ".__init__"
    )


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            is_package = (ROOT / module.replace(".", "/")).is_dir()
            found |= {f"{module}.{alias.name}" for alias in node.names} if is_package else {module}
    return found


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_imports_follow_the_layers(path: Path) -> None:
    ours = {
        name.removeprefix("fastdeit.") for name in imports(path) if name.startswith("fastdeit.")
    }
    assert ours <= ALLOWED.get(name_of(path), set())
    foreign = (
        {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names) - {"fastdeit"}
    )
    assert foreign <= ONLY.get(name_of(path), foreign)
    assert not foreign & {"tests", "benchmarks", "kernels"}


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.stem)
def test_kernels_know_torch_and_triton_only(path: Path) -> None:
    names = imports(path)
    foreign = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert foreign <= {"torch", "triton", "fastdeit"}
    assert all(
        name.startswith("fastdeit.kernels.") for name in names if name.startswith("fastdeit")
    )


def test_no_module_is_named_like_another() -> None:
    stems = {path.stem for path in LIBRARY if path.parent == ROOT / "fastdeit"} - {
        "__init__",
        "__main__",
    }
    installed = set(importlib.metadata.packages_distributions()) - {"fastdeit"}
    assert not stems & (set(sys.stdlib_module_names) | installed)


def test_kernels_is_the_tracked_link() -> None:
    link = ROOT / "fastdeit" / "kernels"
    assert link.is_symlink() and os.readlink(link) == "../kernels"
    assert not (ROOT / "kernels" / "__init__.py").exists()
    from fastdeit.kernels import mix

    assert Path(mix.__file__).resolve() == ROOT / "kernels" / "mix.py"


def test_importing_the_package_is_light() -> None:
    code = "import fastdeit, fastdeit.recipes, sys; print(sorted({'torch', 'nvidia', 'numpy'} & set(sys.modules)))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
        ).stdout
        == "[]\n"
    )


def test_the_entry_is_short_and_nobody_imports_it() -> None:
    assert len((ROOT / "fastdeit" / "train.py").read_text().splitlines()) < 80
    assert not [path for path in LIBRARY if "fastdeit.train" in imports(path)]


def test_the_readmes_tree_names_what_exists() -> None:
    tree = (ROOT / "README.md").read_text().split("```text")[1].split("```")[0]
    listed = [line.split()[0] for line in tree.splitlines() if line.strip()]
    assert len(listed) > 20
    assert not [name for name in listed if not (ROOT / name).exists()]
