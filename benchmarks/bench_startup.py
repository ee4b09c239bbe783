"""CPU time from a command to its first step, and of commands that stop earlier.

python -m benchmarks.bench_startup [--out FOLDER] [--rounds 3]

Each command is a separate process, whose CPU seconds include all of its children; rounds alternate.
in_torch: the median divided by that of `python -c "import torch"` in the same run, which every such
command needs at least. A first round, which compiles and stores, is not counted.

  torch       python -c "import torch"
  help        fastdeit train --help
  mistake     fastdeit/train.py with a data path that does not exist
  evaluate, predict   fastdeit evaluate --help, fastdeit predict --help
  step        fastdeit/train.py --stop-after-steps 1, in one process
  launch      the same under `deepspeed` with one rank
"""

import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measuring import harness

COLUMNS = ("date", "commit", "cpu", "torch", "deepspeed", "command", "cpu_s", "in_torch")
ROOT = Path(__file__).parents[1]
TRAIN = ["fastdeit/train.py", "--recipe", "digits_teacher", "--stop-after-steps", "1"]


def commands(folder: Path) -> dict[str, list[str]]:
    """Return the arguments of Python for each command, by its name."""
    data = ["--data-path", str(folder / "digits")]
    output = ["--output-dir", str(folder / "run")]
    runner = ["-m", "deepspeed.launcher.runner", "-q", "--no_local_rank"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    return {
        "torch": ["-c", "import torch"],
        "help": ["-m", "fastdeit", "train", "--help"],
        "mistake": ["fastdeit/train.py", "--data-path", str(folder / "nowhere"), *output],
        "evaluate": ["-m", "fastdeit", "evaluate", "--help"],
        "predict": ["-m", "fastdeit", "predict", "--help"],
        "step": [*TRAIN, *data, *output],
        "launch": [
            *(*runner, "--num_accelerators", "1", "--master_port", port),
            *(*TRAIN, *data, *output),
        ],
    }


def cpu_seconds(arguments: list[str], expected: int) -> float:
    """Return the CPU seconds of a process and its children. Raises RuntimeError for another exit
    code than `expected`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode != expected:
        raise RuntimeError(f"{arguments}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(rounds: int) -> dict[str, float]:
    """Return the median CPU seconds of each command."""
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(rounds + 1):
            for command, arguments in commands(folder).items():
                shutil.rmtree(folder / "run", ignore_errors=True)
                took = cpu_seconds(arguments, expected=2 if command == "mistake" else 0)
                if number:
                    seconds.setdefault(command, []).append(took)
    return {command: statistics.median(values) for command, values in seconds.items()}


def main() -> None:
    parser = harness.make_parser(__doc__)
    harness.add_out(parser)
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds, after one that is not counted"
    )
    args = parser.parse_args()
    import torch

    found = measure(args.rounds)
    stamp = harness.environment(torch.device("cpu"))
    rows: list[harness.Row] = []
    for command, took in found.items():
        columns: harness.Row = {"command": command, "cpu_s": round(took, 2)}
        row = stamp | columns | {"in_torch": round(took / found["torch"], 2)}
        rows.append({name: row[name] for name in COLUMNS})
        print(f"{command:10s} {took:6.2f} CPU s  {took / found['torch']:5.2f} x import torch")
    harness.write_rows(args.out / "cpu-startup.csv", rows, COLUMNS)


if __name__ == "__main__":
    main()
