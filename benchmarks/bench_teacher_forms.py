"""Time of a teacher's forward pass in each form: the form of its file, with its batch norms folded,
compiled, and on a GPU with cuDNN's choice of algorithms.

python -m benchmarks.bench_teacher_forms [--out DIR] [--cases N] [--forms N]

The teachers have random weights and batch statistics. First the decisions of each form must be
those of the file's form in fp32. Then all forms alternate over several rounds: `speed` is the
median of each round's ratio to the file's form, by the time of the GPU, or by CPU time without a
GPU. `images_per_s` has the same seconds, `compile_s` those of the first call. Rows are appended to
DEVICE-teacher-forms.csv.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import timm
import torch
from torch import nn

from benchmarks.measuring import harness
from fastdeit.models.execution.folding import Folded
from fastdeit.models.execution.form import Execution
from fastdeit.models.teachers import teacher as teachers
from fastdeit.models.teachers.files import LoadedTeacher
from fastdeit.models.teachers.teacher import Teacher
from fastdeit.models.teachers.view import Preprocessing, View

ROUNDS = 9
CASES = {
    "cpu": [("regnety_002", 224, 16), ("resnet50", 224, 8), ("test_resnet", 32, 32)],
    "cuda": [("regnety_160", 224, 128), ("regnety_160", 224, 256), ("resnet50", 224, 128)],
}
"""The teacher, the side of the images in pixels, and the images at once."""
COLUMNS = ("images_per_s", "speed", "compile_s", "agreement")


class Form(NamedTuple):
    """A form of a teacher; folds: whether its batch norms are folded."""

    name: str
    folds: bool
    execution: Execution


FORMS = {
    "cpu": [
        Form("as in the file", False, Execution()),
        Form("folded", True, Execution()),
        Form("folded, compiled", True, Execution(compiled=True)),
    ],
    "cuda": [
        Form("as in the file", False, Execution()),
        Form("folded", True, Execution()),
        Form("folded, cuDNN times its algorithms", True, Execution(benchmark=True)),
        Form("folded, compiled", True, Execution(compiled=True)),
    ],
}
"""The forms; the others are compared with the first."""


def make_network(name: str) -> nn.Module:
    """Return a network with random weights, and batch statistics that are not trivial."""
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=1000).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return network


def make_teacher(
    form: Form, name: str, size: int, device: torch.device, dtype: torch.dtype
) -> Teacher:
    preprocessing = Preprocessing((0.5,) * 3, (0.5,) * 3, size)
    loaded = LoadedTeacher(make_network(name), name, View(preprocessing, {}), Path(name))
    with nullcontext() if form.folds else _keep_norms():
        return Teacher(
            loaded,
            num_classes=1000,
            device=device,
            dtype=dtype,
            student=preprocessing,
            execution=form.execution,
        )


@contextmanager
def _keep_norms() -> Iterator[None]:
    with mock.patch.object(teachers, "fold_batch_norms", lambda network, _: Folded(network, 0)):
        yield


def clock(run: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of a call on the GPU, or its CPU seconds."""
    if device.type == "cuda":
        return harness.quantiles_ms(run, device)[1] / 1e3
    start = time.process_time()
    run()
    return time.process_time() - start


def measure(
    run: Mapping[str, Callable[[], object]], device: torch.device
) -> dict[str, list[float]]:
    """Return the seconds of each form in each round; every round begins with another form."""
    names = list(run)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(ROUNDS):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(clock(run[name], device))
    return seconds


def agreement(logits: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the share of equal decisions. Raises AssertionError if it is below 90 %."""
    share = (logits.argmax(1) == exact.argmax(1)).float().mean().item()
    if share < 0.9:
        raise AssertionError(f"equal decisions must be at least 90 % (got {share:.1%})")
    return share


def bench(
    name: str, size: int, batch: int, device: torch.device, forms: list[Form]
) -> list[harness.Row]:
    """Compare the decisions of the forms, then return the rows of one teacher."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    images = torch.randn(batch, 3, size, size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    exact = make_teacher(forms[0], name, size, device, torch.float32)(images)
    images = images.to(dtype)
    run: dict[str, Callable[[], object]] = {}
    rows = []
    for form in forms:
        teacher = make_teacher(form, name, size, device, dtype)
        start = time.perf_counter()
        share = agreement(teacher(images), exact)
        first = time.perf_counter() - start
        run[form.name] = lambda teacher=teacher: teacher(images)  # type: ignore[misc]
        columns = harness.case_columns(
            "teacher_forms", "forward", f"{name} {batch}x{size}", str(dtype)[6:], form.name
        )
        compiled = f"{first:.1f}" if form.execution.compiled else ""
        rows.append(columns | {"compile_s": compiled, "agreement": f"{share:.4f}"})
    seconds = measure(run, device)
    baseline = seconds[forms[0].name]
    for row, own in zip(rows, seconds.values(), strict=True):
        ratios = [base / mine for base, mine in zip(baseline, own, strict=True)]
        row["images_per_s"] = f"{batch / statistics.median(own):.4g}"
        row["speed"] = f"{statistics.median(ratios):.3f}"
    return rows


def main() -> None:
    parser = harness.make_parser(__doc__)
    harness.add_out(parser)
    parser.add_argument("--cases", type=int, help="number of cases, from the first; default: all")
    parser.add_argument("--forms", type=int, help="number of forms, from the first; default: all")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    place = "cpu" if device.type == "cpu" else harness.device_slug(device)
    stamp = harness.environment(device)
    for case in itertools.islice(CASES[device.type], args.cases):
        torch.compiler.reset()
        rows = [stamp | row for row in bench(*case, device, FORMS[device.type][: args.forms])]
        for row in rows:
            print("  ".join(f"{row[name]}" for name in ("shape", "impl", *COLUMNS)), flush=True)
        columns = list(dict.fromkeys([*rows[0], *COLUMNS]))
        harness.write_rows(args.out / f"{place}-teacher-forms.csv", rows, columns)


if __name__ == "__main__":
    main()
