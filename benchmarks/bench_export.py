"""CPU time of an exported model per image: `fastdeit export` against torch and timm.

python -m benchmarks.bench_export [-o results.csv]

Students with initial weights (trained ones would take as long), images of 224 px, one thread,
batches of 1 and 8. "timm" is timm's model with the same weights, eager; "compiled" our student
under torch.compile. Times are process CPU time; the implementations alternate, and a row is the
least of several calls. ratio: the time of timm's model divided by that of the row, so larger is
faster.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch

from benchmarks.measuring import harness
from fastdeit.export.network import Precision
from fastdeit.export.onnx_file import export_onnx
from fastdeit.export.program import export_program, load_program
from fastdeit.inference.load import LoadedModel
from fastdeit.models.hub import EvalView
from fastdeit.models.student import build_student

MODELS = ("deit_tiny_distilled_patch16_224", "deit_small_distilled_patch16_224")
BATCHES = (1, 8)
CALLS = 9
VIEW = EvalView(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0.9)
Run = Callable[[torch.Tensor], Any]


def build(name: str) -> LoadedModel:
    student = build_student(name, num_classes=1000, qkv_bias=True).eval().requires_grad_(False)
    return LoadedModel(student, name, VIEW, None, name, "", {})


def implementations(loaded: LoadedModel, folder: Path) -> dict[str, Run]:
    """Return the functions to time, from images to logits."""
    theirs = timm.create_model(loaded.name).eval().requires_grad_(False)
    theirs.load_state_dict(loaded.model.state_dict())
    runs: dict[str, Run] = {"timm": theirs, "fastdeit": loaded.model}
    runs["fastdeit, compiled"] = torch.compile(loaded.model, dynamic=False)
    export_program(loaded, folder / "x.pt2")
    runs["torch.export"] = load_program(folder / "x.pt2")
    precisions: tuple[Precision, ...] = ("fp32", "fp16")
    for precision in precisions:
        export_onnx(loaded, folder / f"{precision}.onnx", precision=precision)
        runs[f"ONNX, {precision}"] = open_on_one_thread(folder / f"{precision}.onnx")
    return runs


def open_on_one_thread(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images.numpy()})


def least_ms(runs: Mapping[str, Run], images: torch.Tensor) -> dict[str, float]:
    """Return the least CPU milliseconds per image of each function."""
    times: dict[str, float] = dict.fromkeys(runs, float("inf"))
    for run in runs.values():
        run(images)  # compiles, and allocates memory
    for _ in range(CALLS):
        for name, run in runs.items():
            start = time.process_time()
            run(images)
            spent = 1e3 * (time.process_time() - start) / len(images)
            times[name] = min(times[name], spent)
    return times


def main() -> None:
    parser = harness.make_parser(__doc__)
    output = harness.RESULTS / "cpu-export.csv"
    parser.add_argument("-o", "--output", type=Path, default=output)
    args = parser.parse_args()
    torch.set_num_threads(1)
    stamp = harness.environment(torch.device("cpu"))
    stamp |= {name: harness.installed(name) for name in ("timm", "onnxruntime")}
    rows: list[harness.Row] = []
    for name in MODELS:
        with TemporaryDirectory() as folder, torch.inference_mode():
            loaded = build(name)
            with torch.inference_mode(False):
                runs = implementations(loaded, Path(folder))
            for batch in BATCHES:
                times = least_ms(runs, torch.randn(batch, 3, 224, 224))
                rows += [
                    {
                        **stamp,
                        "model": name,
                        "batch": batch,
                        "impl": impl,
                        "cpu_ms": f"{spent:.4g}",
                        "ratio": f"{times['timm'] / spent:.3g}",
                    }
                    for impl, spent in times.items()
                ]
    harness.write_rows(args.output, rows, list(rows[0]))
    for row in rows:
        print(*(row[column] for column in ("model", "batch", "impl", "cpu_ms", "ratio")))


if __name__ == "__main__":
    main()
