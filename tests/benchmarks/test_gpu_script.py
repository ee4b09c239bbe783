"""Rehearse benchmarks/gpu.sh without a GPU: a machine with one may be lent for minutes, and must
not be wasted on a wrong path.

A script stands for python and writes what the real one would; the slow form runs the real one, at a
CPU's sizes.
"""

import csv
import os
import random
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
STEPS = ("kernels", "train", "step", "tune", "others")
FILES, MIB = 8, 16
"""What comes back of a lent machine: so many files, each of so many MiB."""
CALL_S, UNPACKING_S = 600, 60
"""A command there is killed after so long; so much of it goes by before the script begins."""
KILL_AFTER_S = 5
PYTHON = r"""#!/usr/bin/env bash
echo "$PYTHONPATH|$*" >>"$CALLS"
case "$*" in
    "-c import "*)
        module=${2#import }
        [[ " $MISSING " != *" ${module%%;*} "* ]] || { echo "No module named $module" >&2; exit 1; } ;;
    "-m compileall"* | *summary*) ;;
    *)
        cat  # takes all that is said to it
        echo started
        [[ -z $STUBBORN || "$*" != *"$STUBBORN"* ]] || { trap '' INT; for _ in {1..300}; do sleep 0.1; done; }
        head -c 200000 /dev/urandom | base64
        for word; do
            case $before in
                --out) echo row >>"$word/h100.csv" ;;
                -o | --distances) echo row >>"$word" ;;
            esac
            before=$word
        done
        [[ -z $FAILING || "$*" != *"$FAILING"* ]] || { echo "a last word of $FAILING"; exit 3; } ;;
esac
"""
TOOLS = {
    "python": PYTHON,
    "nvidia-smi": "#!/bin/sh\necho driver\n",
    "ncu": '#!/usr/bin/env bash\nwhile [ "$1" != --log-file ]; do shift; done\necho metric >"$2"\nshift 2\nexec "$@"\n',
}


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder of what stands for the machine's programs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in TOOLS.items():
        add_tool(folder, name, text)
    return folder


def add_tool(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def command(step: str, tools: Path, **settings: str) -> tuple[list[str], dict[str, str]]:
    """The script with its stand-ins, and the environment for it."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("DEVICE", "PYTHONPATH")
    }
    environment |= {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "OUT": str(tools.parent / "out"),
        "CALLS": str(tools / "calls"),
    }
    environment |= {
        "PYTHONPATH": "/carried",
        "MISSING": "",
        "FAILING": "",
        "STUBBORN": "",
        **settings,
    }
    return ["bash", str(ROOT / "benchmarks" / "gpu.sh"), step, str(tools / "python")], environment


def rehearse(step: str, tools: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    argv, environment = command(step, tools, **settings)
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=100)


def members(out: Path) -> set[str]:
    """The names in the archive, each read to its end."""
    with tarfile.open(out / "all.tgz") as archive:
        names = set()
        for one in archive:
            file = archive.extractfile(one)
            assert one.isdir() or (file is not None and file.read() is not None)
            names.add(Path(one.name).name)
        return names


def assert_comes_back(out: Path) -> None:
    found = list(out.rglob("*"))
    assert len(found) <= FILES and all(path.is_file() for path in found), found
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", path.name) for path in found), found
    assert all(path.stat().st_size <= MIB << 20 for path in found), found


def announced(output: str) -> list[str]:
    """The parts that the output names as ended, in their order."""
    return re.findall(r"^([\w-]+): \d+ s$", output, re.MULTILINE)


@pytest.mark.parametrize("step", STEPS)
def test_step_exits_with_all_results_in_the_archive(step: str, tools: Path) -> None:
    ended = rehearse(step, tools)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    parts, out = announced(ended.stdout), tools.parent / "out"
    assert len(parts) >= 2
    assert_comes_back(out)
    kept = members(out)
    assert {f"{name}.log" for name in parts} <= kept
    assert {path.name for path in out.glob("*.csv")} <= kept
    paths = {line.partition("|")[0] for line in (tools / "calls").read_text().splitlines()}
    assert paths == {f"{ROOT}:/carried"}


@pytest.mark.parametrize("step", STEPS)
def test_time_limits_of_a_step_fit_into_one_call(step: str, tools: Path) -> None:
    add_tool(
        tools, "timeout", '#!/usr/bin/env bash\necho "$*" >>"$CALLS.limits"\nshift 3\nexec "$@"\n'
    )
    parts = announced(rehearse(step, tools).stdout)
    asked = (tools / "calls.limits").read_text()
    limits = re.findall(rf"^--signal=INT --kill-after={KILL_AFTER_S} (\d+) ", asked, re.MULTILINE)
    assert len(limits) == len(parts) == len(asked.splitlines())
    assert sum(int(limit) + KILL_AFTER_S for limit in limits) <= CALL_S - UNPACKING_S
    assert f" {' + '.join(limits)} s |" in (ROOT / "docs" / "gpu.md").read_text()


def test_failed_part_is_reported_and_the_others_run(tools: Path) -> None:
    ended = rehearse("step", tools, FAILING="bench_norm")
    assert ended.returncode == 1
    assert announced(ended.stdout) == ["step", "norm", "gelu", "settings"]
    assert "a last word of bench_norm" in ended.stdout
    assert "failed: norm (3); their logs are in" in ended.stdout


def test_part_over_its_limit_is_killed_and_its_log_kept(tools: Path) -> None:
    add_tool(
        tools,
        "timeout",
        '#!/usr/bin/env bash\nexec /usr/bin/timeout --signal=INT --kill-after=0.2 0.5 "${@:4}"\n',
    )
    ended = rehearse("others", tools, STUBBORN="bench_distill")
    assert ended.returncode == 1
    assert announced(ended.stdout) == ["mix", "distill", "augment", "ema", "checksum"]
    assert "failed: distill (137)" in ended.stdout
    with tarfile.open(tools.parent / "out" / "all.tgz") as archive:
        log = archive.extractfile("./distill.log")
        assert log is not None and log.read() == b"started\n"


HANGING = """
import pathlib, time
import pytest

FAILED = pathlib.Path(__file__).with_name("failed")

@pytest.mark.parametrize("number", range(2))
def test_one(number):
    if number:
        FAILED.touch()
        assert False, "the one that fails"
    time.sleep(600)
"""
INTERRUPTING = """#!{python}
import os, pathlib, signal, subprocess, sys, time
process = subprocess.Popen(sys.argv[4:], preexec_fn=os.setpgrp)
while process.poll() is None and "pytest" in sys.argv and not pathlib.Path("{folder}/failed").exists():
    time.sleep(0.1)
if "pytest" in sys.argv:
    time.sleep(1)  # until the failure has come from one process to the other
    os.killpg(process.pid, signal.SIGINT)
process.wait()
sys.exit(124 if "pytest" in sys.argv else 0)
"""


def test_interrupted_tests_still_report_failures(tools: Path, tmp_path: Path) -> None:
    """pytest itself, with processes of its own, in the part of the kernels' tests; `timeout`
    signals them in this way."""
    (tmp_path / "test_hanging.py").write_text(HANGING)
    real = (
        f'exec {sys.executable} -m pytest "${{@:3:4}}" -n 2 -c /dev/null {tmp_path}/test_hanging.py'
    )
    add_tool(
        tools, "python", PYTHON.replace("    *)\n", f'    "-m pytest"*) {real} ;;\n    *)\n', 1)
    )
    add_tool(tools, "timeout", INTERRUPTING.format(python=sys.executable, folder=tmp_path))
    ended = rehearse("kernels", tools)
    assert ended.returncode == 1 and "failed: tests_kernels (124)" in ended.stdout, ended.stdout
    assert "the one that fails" in ended.stdout, ended.stdout


@pytest.mark.parametrize(
    ("missing", "step", "left"),
    [
        ("deepspeed", "kernels", ["nvidia-smi", "ceilings", "tests_kernels", "attention"]),
        ("nvidia.dali", "step", ["step", "norm", "gelu"]),
        ("nvidia.dali", "train", []),
    ],
)
def test_part_with_a_missing_module_is_reported_and_skipped(
    missing: str, step: str, left: list[str], tools: Path
) -> None:
    ended = rehearse(step, tools, MISSING=missing)
    assert ended.returncode == 0, ended.stdout
    assert f"left out for want of {missing}: No module named {missing}" in ended.stdout
    assert announced(ended.stdout) == left


def test_step_fails_at_once_without_a_gpu(tools: Path) -> None:
    ended = rehearse("kernels", tools, MISSING="torch")
    assert ended.returncode == 1 and not announced(ended.stdout)


@pytest.mark.parametrize("argument", ["", "kernel", "s", "the"])
def test_unknown_step_prints_the_list_of_steps(argument: str, tools: Path) -> None:
    ended = rehearse(argument, tools)
    assert ended.returncode == 2
    assert re.findall(r"^  (\w+) ", ended.stdout, re.MULTILINE) == list(STEPS)


def kill_session(leader: int) -> None:
    """SIGKILL for every process of a session, as a machine does that is taken back."""
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader:
                process.kill()
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue


def output_until(process: subprocess.Popen[str], parts: int) -> str:
    """What a step has told when so many of its parts are announced."""
    told = ""
    assert process.stdout is not None
    while len(announced(told)) < parts:
        told += process.stdout.readline()
    return told


def kill_step(tools: Path, parts: int, delay_s: float) -> None:
    """Kill a step so long after so many of its parts; what is left is asserted to be whole."""
    argv, environment = command(
        "others", tools, OUT=str(tools.parent / f"killed-{time.monotonic_ns()}")
    )
    process = subprocess.Popen(
        argv, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    told = output_until(process, parts)
    time.sleep(delay_s)
    kill_session(process.pid)
    told, out = told + process.communicate(timeout=20)[0], Path(environment["OUT"])
    before = announced(told)[:-1]  # the last one may have been on its way into the archive
    assert (out / "all.tgz").exists() or not before
    if out.exists():
        assert_comes_back(out)
    if (out / "all.tgz").exists():
        assert {f"{name}.log" for name in before} <= members(out)


@pytest.mark.parametrize("parts", range(5))
def test_archive_is_whole_after_a_kill(parts: int, tools: Path) -> None:
    chance = random.Random(parts)
    for _ in range(2):
        kill_step(tools, parts, chance.uniform(0, 0.2))


@pytest.mark.slow
@pytest.mark.parametrize("parts", range(5))
def test_archive_is_whole_after_many_kills(parts: int, tools: Path) -> None:
    chance = random.Random(10 + parts)
    for _ in range(40):
        kill_step(tools, parts, chance.uniform(0, 0.4))


PARSE = """
import argparse, runpy, sys
class Understood(Exception): pass
def parse(parser, *_, real=argparse.ArgumentParser.parse_args):
    real(parser)
    raise Understood
argparse.ArgumentParser.parse_args = parse
for line in sys.stdin:
    name, *sys.argv[1:] = line.split()
    try: runpy.run_module(name, run_name="__main__", alter_sys=True)
    except Understood: print("understood", name)
"""


def test_every_benchmark_parses_the_flags_of_the_script(tools: Path) -> None:
    for step in STEPS:
        rehearse(step, tools)
    calls = [line.partition("|")[2] for line in (tools / "calls").read_text().splitlines()]
    asked = sorted(
        {
            call.removeprefix("-m ")
            for call in calls
            if call.startswith(("-m benchmarks.bench_", "-m benchmarks.tune"))
        }
    )
    assert len(asked) >= 18
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(
        [sys.executable, "-c", PARSE],
        input="\n".join(asked),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    assert ended.stdout.splitlines() == [f"understood {line.split()[0]}" for line in asked], (
        ended.stderr[-2000:]
    )


@pytest.mark.slow
@pytest.mark.parametrize("step", ["kernels", "train", "step", "others"])
def test_every_step_runs_on_the_cpu(step: str, tmp_path: Path) -> None:
    environment = os.environ | {"DEVICE": "cpu", "OUT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    argv = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), step, sys.executable]
    ended = subprocess.run(argv, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0 and "left out" not in ended.stdout, ended.stdout + ended.stderr
    assert_comes_back(tmp_path)
    for path in tmp_path.glob("*.csv"):
        with path.open(newline="") as file:
            assert all(
                None not in row and None not in row.values() for row in csv.DictReader(file)
            ), path
