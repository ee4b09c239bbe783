"""The layout of the tree: which room may import which, and how large rooms are."""

import ast
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastdeit
from tests.conftest import HEAVY
from tests.support.launching import ROOT
from tests.support.short_forms import SHORT

LIBRARY = sorted(path for path in (ROOT / "fastdeit").rglob("*.py") if "kernels" not in path.parts)
KERNELS = sorted((ROOT / "kernels").rglob("*.py"))

STORAGE = {"distributed", "display", "storage"}
PARTS = {
    "checkpoint",
    "config",
    "data",
    "models",
    "plan",
    "reliability",
    "teacher_cache",
    "training",
}
# what is done with a run or its weights
USES = {"analysis", "audit", "doctor", "estimate", "export", "inference", "report", "tracking"}
# room -> the rooms that it may import; every room may use its own, and kernels
ROOMS: dict[str, set[str]] = {
    "train": {"commands", "display", "distributed", "reliability"},
    "__main__": {"commands", "display", "distributed", "reliability"},
    "__init__": {"library", "storage", "tracking", *PARTS},
    "commands": {"library", "mirror", "replay", "run", *USES, *PARTS, *STORAGE},
    "library": {"mirror", "run", *USES, *PARTS, *STORAGE},
    "replay": {"run", "tracking", *PARTS, *STORAGE},
    "run": {"mirror", "report", "tracking", *PARTS, *STORAGE},
    "mirror": {"checkpoint", "data", "reliability", *STORAGE},
    "report": {"analysis", "audit", "inference", "tracking", *PARTS, *STORAGE},
    "audit": {"inference", *PARTS, *STORAGE},
    "doctor": {*PARTS, *STORAGE},
    "estimate": {*PARTS, *STORAGE},
    "export": {"inference", *PARTS, *STORAGE},
    "inference": {"analysis", *PARTS, *STORAGE},
    "analysis": {*PARTS, *STORAGE},
    "tracking": {"config", "data", "display", "distributed", "storage", "training"},
    "reliability": {"checkpoint", "display", "distributed", "plan", "storage", "training"},
    "training": {"config", "data", "distributed", "models", "plan", "storage"},
    "teacher_cache": {"config", "data", "distributed", "models", "plan", "storage"},
    "checkpoint": {"config", "distributed", "storage"},
    "models": {"config", "distributed", "storage"},
    "data": {"config", "display", "distributed", "plan", "storage"},
    "plan": {"config"},
    "config": {"display", "storage"},
    "display": {"storage"},
    "distributed": set(),
    "storage": set(),
}
# the rooms in which every module may see a whole `Config`; elsewhere only build.py may
SEES_CONFIG = {"commands", "config", "library", "replay", "report", "run"}
# third-party names that a low layer is limited to
ONLY: dict[str, set[str]] = {
    "plan": {"numpy"},
    "config": {"tyro", "yaml"},
    "storage": {"numpy", "pydantic", "safetensors", "torch"},
}


def room_of(name: str) -> str:
    return name.removeprefix("fastdeit.").split(".")[0]


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
    names = imports(path)
    foreign = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"fastdeit"}
    assert not foreign & {"tests", "benchmarks", "kernels"}
    room = room_of(name_of(path))
    allowed = ROOMS.get(room, set()) | {room, "kernels"}
    ours = {room_of(name) for name in names if name.startswith("fastdeit.")}
    assert ours <= allowed
    assert foreign <= ONLY.get(room, foreign)


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_a_config_is_seen_by_builders_and_whole_runs_only(path: Path) -> None:
    sees_config = "Config" in {
        alias.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "fastdeit.config.schema"
        for alias in node.names
    }
    room = room_of(name_of(path))
    assert not sees_config or path.name == "build.py" or room in SEES_CONFIG


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.stem)
def test_kernels_import_torch_and_triton_only(path: Path) -> None:
    names = imports(path)
    foreign = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert foreign <= {"torch", "triton", "fastdeit"}
    assert all(
        name.startswith("fastdeit.kernels.") for name in names if name.startswith("fastdeit")
    )


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_only_the_display_prints(path: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    names = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
    assert room_of(name_of(path)) == "display" or not names & {"print", "Console"}


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


@pytest.mark.parametrize("folder", ["benchmarks", "tests"])
def test_no_installed_package_comes_before_a_folder_of_commands(folder: str) -> None:
    # a folder without __init__.py comes after every package; wheels of pyarrow 17 bring benchmarks
    assert (ROOT / folder / "__init__.py").is_file()


def test_nothing_needs_pandas() -> None:
    # before 26 pyarrow's to_pandas_dtype, too, imports pandas, which is not required
    assert not [path for path in LIBRARY if "pandas" in path.read_text()]


def test_importing_the_package_and_printing_versions_is_light() -> None:
    code = (
        "import fastdeit, fastdeit.config.recipes, fastdeit.__main__ as entry, sys\n"
        "sys.argv = ['fastdeit', '--version']\n"
        "assert entry.main() == 0\n"
        "print(sorted({'torch', 'nvidia.dali', 'numpy'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    version, loaded = done.stdout.splitlines()
    assert version.startswith(f"fastdeit {fastdeit.__version__}") and " torch 2." in version
    assert loaded == "[]"


@pytest.mark.parametrize("command", ["data.fetch", "data.pack", "data.index", "doctor"])
def test_commands_of_one_process_import_no_torch(command: str) -> None:
    code = f"import sys, fastdeit.commands.{command}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_entry_is_short_and_nobody_imports_it() -> None:
    assert len((ROOT / "fastdeit" / "train.py").read_text().splitlines()) < 80
    assert not [path for path in LIBRARY if "fastdeit.train" in imports(path)]


def test_the_tree_in_contributing_names_what_exists() -> None:
    tree = (ROOT / "CONTRIBUTING.md").read_text().split("```text")[1].split("```")[0]
    listed = {line.split()[0].rstrip("/") for line in tree.splitlines() if line.strip()}
    assert not [name for name in listed if not (ROOT / name).exists()]
    rooms = {
        path.parent.relative_to(ROOT).as_posix()
        for path in LIBRARY
        if path.parent.parts[-1] != "fastdeit"
    }
    assert rooms <= listed


def test_a_room_is_small_and_says_what_it_holds() -> None:
    for folder in {path.parent for path in LIBRARY}:
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= 10, folder
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder


def test_a_source_file_has_about_300_lines_at_most() -> None:
    benchmarks = (ROOT / "benchmarks").rglob("*.py")
    lines = {path: path.read_text().count("\n") for path in (*LIBRARY, *KERNELS, *benchmarks)}
    assert len(lines) > 300 and not [str(path) for path, count in lines.items() if count > 320]


def test_the_package_holds_entries_and_rooms_only() -> None:
    entries = {path.name for path in (ROOT / "fastdeit").glob("*.py")}
    assert entries == {"__init__.py", "__main__.py", "train.py"}


def test_the_heavy_test_files_exist() -> None:
    assert not [name for name in HEAVY if not (ROOT / "tests" / name).is_file()]


def test_the_tests_with_short_forms_exist() -> None:
    for name in SHORT:
        file, _, test = name.partition("::")
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(), name
