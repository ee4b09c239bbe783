"""Rehearsal of benchmarks/gpu.sh without a GPU, as time on a machine with a GPU is scarce.

A script replaces python and writes the files that the real one would; the slow tests run the real
one, at sizes for a CPU.

.venv/bin/python -m pytest tests/benchmarks/test_gpu_script.py, about 40 s
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

from tests.support.launching import ROOT

STEPS = ("kernels", "train", "step", "loader", "tune", "teacher", "others")
MAX_FILES = 8
MAX_FILE_MIB = 16
"""Limits on the files that are copied back from the GPU machine."""
CALL_S = 600
UNPACKING_S = 60
"""Time limit of one command on the GPU machine, and the part of it before the script starts."""
KILL_AFTER_S = 5
PYTHON = r"""#!/usr/bin/env bash
echo "$PYTHONPATH|$*" >>"$CALLS"
case "$*" in
    "-c import "*)
        module=${2#import }
        if [[ " $MISSING " == *" ${module%%;*} "* ]]; then
            echo "No module named $module" >&2
            exit 1
        fi ;;
    "-m compileall"* | *summary*) ;;
    *)
        cat  # reads all of stdin
        echo started
        if [[ -n $STUBBORN && "$*" == *"$STUBBORN"* ]]; then
            trap '' INT
            for _ in {1..300}; do sleep 0.1; done
        fi
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
NCU = r"""#!/usr/bin/env bash
while [ "$1" != --log-file ]; do shift; done
echo metric >"$2"
shift 2
exec "$@"
"""
LIMITS_RECORDED = r"""#!/usr/bin/env bash
echo "$*" >>"$CALLS.limits"
shift 3
exec "$@"
"""
SHORT_LIMIT = r"""#!/usr/bin/env bash
exec /usr/bin/timeout --signal=INT --kill-after=0.2 0.5 "${@:4}"
"""
TOOLS = {"python": PYTHON, "nvidia-smi": "#!/bin/sh\necho driver\n", "ncu": NCU}


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """Return a folder of stand-ins for the programs of the GPU machine."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in TOOLS.items():
        add_tool(folder, name, text)
    return folder


def add_tool(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def command(step: str, tools: Path, **settings: str) -> tuple[list[str], dict[str, str]]:
    """Return the command of the script with its stand-ins, and its environment."""
    environment = dict(os.environ)
    environment.pop("DEVICE", None)
    environment["PATH"] = f"{tools}:{os.environ['PATH']}"
    environment["OUT"] = str(tools.parent / "out")
    environment["CALLS"] = str(tools / "calls")
    environment["PYTHONPATH"] = "/carried"
    environment |= {"MISSING": "", "FAILING": "", "STUBBORN": "", **settings}
    return ["bash", str(ROOT / "benchmarks" / "gpu.sh"), step, str(tools / "python")], environment


def rehearse(step: str, tools: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    argv, environment = command(step, tools, **settings)
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=100)


def members(out: Path) -> set[str]:
    """Return the names in the archive, after reading every file in it."""
    with tarfile.open(out / "all.tgz") as archive:
        names = set()
        for one in archive:
            file = archive.extractfile(one)
            assert one.isdir() or (file is not None and file.read() is not None)
            names.add(Path(one.name).name)
        return names


def assert_within_limits(out: Path) -> None:
    """Assert that all results can be copied back: number, names and sizes of the files."""
    found = list(out.rglob("*"))
    assert len(found) <= MAX_FILES and all(path.is_file() for path in found), found
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", path.name) for path in found), found
    assert all(path.stat().st_size <= MAX_FILE_MIB << 20 for path in found), found


def announced(output: str) -> list[str]:
    """Return the parts that the output reports as ended, in order."""
    return re.findall(r"^([\w-]+): \d+ s$", output, re.MULTILINE)


@pytest.mark.parametrize("step", STEPS)
def test_step_exits_with_all_results_in_the_archive(step: str, tools: Path) -> None:
    ended = rehearse(step, tools)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    parts = announced(ended.stdout)
    out = tools.parent / "out"
    assert len(parts) >= 2
    assert_within_limits(out)
    kept = members(out)
    assert {f"{name}.log" for name in parts} <= kept
    assert {path.name for path in out.glob("*.csv")} <= kept
    paths = {line.partition("|")[0] for line in (tools / "calls").read_text().splitlines()}
    assert paths == {f"{ROOT}:/carried"}


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_time_limits_of_a_step_fit_into_one_call(step: str, tools: Path) -> None:
    add_tool(tools, "timeout", LIMITS_RECORDED)
    parts = announced(rehearse(step, tools).stdout)
    recorded = (tools / "calls.limits").read_text()
    pattern = rf"^--signal=INT --kill-after={KILL_AFTER_S} (\d+) "
    limits = re.findall(pattern, recorded, re.MULTILINE)
    assert len(limits) == len(parts) == len(recorded.splitlines())
    assert sum(int(limit) + KILL_AFTER_S for limit in limits) <= CALL_S - UNPACKING_S
    assert f" {' + '.join(limits)} s |" in (ROOT / "docs" / "gpu.md").read_text()


def test_failed_part_is_reported_and_the_others_run(tools: Path) -> None:
    ended = rehearse("step", tools, FAILING="bench_norm")
    assert ended.returncode == 1
    assert announced(ended.stdout) == ["tests_step", "step", "norm", "gelu"]
    assert "a last word of bench_norm" in ended.stdout
    assert "failed: norm (3); their logs are in" in ended.stdout


def test_part_over_its_limit_is_killed_and_its_log_kept(tools: Path) -> None:
    add_tool(tools, "timeout", SHORT_LIMIT)
    ended = rehearse("others", tools, STUBBORN="bench_distill")
    assert ended.returncode == 1
    assert announced(ended.stdout) == [
        "mix",
        "normalise",
        "distill",
        "augment",
        "resize",
        "ema",
        "checksum",
        "memory",
    ]
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
failed = pathlib.Path("{folder}/failed")
if "pytest" not in sys.argv:
    process.wait()
    sys.exit(0)
while process.poll() is None and not failed.exists():
    time.sleep(0.1)
time.sleep(1)  # until the failure has been sent from one process to the other
os.killpg(process.pid, signal.SIGINT)
process.wait()
sys.exit(124)
"""


@pytest.mark.slow
def test_interrupted_tests_still_report_failures(tools: Path, tmp_path: Path) -> None:
    """Runs the real pytest, with worker processes, as the part tests_kernels, and interrupts it as
    `timeout` does."""
    test = tmp_path / "test_hanging.py"
    test.write_text(HANGING)
    real = f'exec {sys.executable} -m pytest "${{@:3:4}}" -n 2 -c /dev/null {test}'
    python = PYTHON.replace("    *)\n", f'    "-m pytest"*) {real} ;;\n    *)\n', 1)
    add_tool(tools, "python", python)
    add_tool(tools, "timeout", INTERRUPTING.format(python=sys.executable, folder=tmp_path))
    ended = rehearse("kernels", tools)
    assert ended.returncode == 1 and "failed: tests_kernels (124)" in ended.stdout, ended.stdout
    assert "the one that fails" in ended.stdout, ended.stdout


@pytest.mark.parametrize(
    ("missing", "step", "left"),
    [
        ("deepspeed", "kernels", ["nvidia-smi", "ceilings", "tests_kernels", "attention"]),
        ("deepspeed", "step", ["step", "norm", "gelu"]),
        ("nvidia.dali", "loader", ["paths"]),
        ("pyarrow", "teacher", []),
        ("nvidia.dali", "train", []),
    ],
)
def test_part_with_a_missing_module_is_reported_and_skipped(
    missing: str, step: str, left: list[str], tools: Path
) -> None:
    ended = rehearse(step, tools, MISSING=missing)
    assert ended.returncode == 0, ended.stdout
    assert f"skipped, {missing} is missing: No module named {missing}" in ended.stdout
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
    """Send SIGKILL to every process of a session, as when the machine is shut down."""
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader:
                process.kill()
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue


def output_until(process: subprocess.Popen[str], parts: int) -> str:
    """Return the output of a step up to the line that reports this number of parts."""
    output = ""
    assert process.stdout is not None
    while len(announced(output)) < parts:
        output += process.stdout.readline()
    return output


def kill_step(tools: Path, parts: int, delay_s: float) -> None:
    """Kill a step `delay_s` after this number of parts, and assert that the results are whole."""
    out = tools.parent / f"killed-{time.monotonic_ns()}"
    argv, environment = command("others", tools, OUT=str(out))
    process = subprocess.Popen(
        argv, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    output = output_until(process, parts)
    time.sleep(delay_s)
    kill_session(process.pid)
    output += process.communicate(timeout=20)[0]
    before = announced(output)[:-1]  # the archive may not contain the last one yet
    assert (out / "all.tgz").exists() or not before
    if out.exists():
        assert_within_limits(out)
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
class Parsed(Exception): pass
def parse(parser, *_, real=argparse.ArgumentParser.parse_args):
    real(parser)
    raise Parsed
argparse.ArgumentParser.parse_args = parse
for line in sys.stdin:
    name, *sys.argv[1:] = line.split()
    try: runpy.run_module(name, run_name="__main__", alter_sys=True)
    except Parsed: print("parsed", name)
"""


@pytest.mark.slow
def test_every_benchmark_parses_the_flags_of_the_script(tools: Path) -> None:
    for step in STEPS:
        rehearse(step, tools)
    commands = set()
    for line in (tools / "calls").read_text().splitlines():
        call = line.partition("|")[2]
        if call.startswith(("-m benchmarks.bench_", "-m benchmarks.tune")):
            commands.add(call.removeprefix("-m "))
    assert len(commands) >= 18
    ended = subprocess.run(
        [sys.executable, "-c", PARSE],
        input="\n".join(sorted(commands)),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    expected = [f"parsed {line.split()[0]}" for line in sorted(commands)]
    assert ended.stdout.splitlines() == expected, ended.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("step", ["kernels", "train", "step", "teacher", "others"])
def test_every_step_runs_on_the_cpu(step: str, tmp_path: Path) -> None:
    environment = os.environ | {"DEVICE": "cpu", "OUT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    argv = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), step, sys.executable]
    ended = subprocess.run(argv, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert not re.search("^ *skipped[,:]", ended.stdout, re.MULTILINE), ended.stdout
    assert_within_limits(tmp_path)
    for path in tmp_path.glob("*.csv"):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                assert None not in row and None not in row.values(), path
