"""CPU time of an evaluation per image: `fastdeit evaluate` against the loop of timm's validate.py.

python -m benchmarks.bench_evaluate [-o results.csv]

Both have the same 500 x 375 JPEG files and weights, batches of 64 and one thread of torch, all in
one process, so that process CPU time includes everything. Both compute top-1 and top-5; ours also
records what calibration, classes and confusions need. The two alternate, and a row is the least of
several passes. ratio: the time of timm divided by that of the row, so larger is faster.
"preprocessing" is a pass with a model that computes nothing.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from timm.data import create_dataset, create_loader
from timm.utils import accuracy
from torch import nn

from benchmarks.bench_pipeline import append
from benchmarks.loaders.case import BATCH
from benchmarks.loaders.images import MEAN, STD, write_images
from benchmarks.measuring import harness
from benchmarks.measuring.harness import Row
from fastdeit.distributed.place import find_world
from fastdeit.inference.evaluate import EvalOptions, ReadOptions, evaluate_model
from fastdeit.inference.load import LoadedModel
from fastdeit.models.hub import EvalView

MODELS = ("resnet18",)
IMAGES = 256
PASSES = 3
VIEW = EvalView(224, MEAN, STD, 0.875)


class Nothing(nn.Module):
    """A model of two classes that reads one pixel of each channel."""

    num_classes = 2

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(images[:, :, 0, 0])
        return logits


@torch.inference_mode()
def run_timm(model: nn.Module, folder: Path) -> float:
    """Return top-1 in percent, as validate.py computes it."""
    loader = create_loader(
        create_dataset("", root=str(folder)),
        input_size=(3, 224, 224),
        batch_size=BATCH,
        use_prefetcher=False,
        num_workers=0,
        interpolation=VIEW.interpolation,
        mean=MEAN,
        std=STD,
        crop_pct=VIEW.crop_pct,
    )
    hits = 0.0
    for images, labels in loader:
        top1, _ = accuracy(model(images), labels, topk=(1, 2))
        hits += top1.item() * len(labels)
    return hits / IMAGES


def run_ours(model: nn.Module, folder: Path) -> float:
    loaded = LoadedModel(model, "model", VIEW, None, "model", "", {})
    options = EvalOptions(reading=ReadOptions(batch_size=BATCH, num_workers=1))
    done = evaluate_model(loaded, folder, ".", options, world=find_world("cpu"))
    return done.results["model/both/top1"]


def measure_ms(run: Callable[[nn.Module, Path], float], model: nn.Module, folder: Path) -> float:
    start = time.process_time()
    run(model, folder)
    return 1e3 * (time.process_time() - start) / IMAGES


def compare(name: str, model: nn.Module, folder: Path) -> list[Row]:
    """Return a row for each implementation. Raises AssertionError unless their top-1 is equal."""
    runs = {"timm": run_timm, "fastdeit": run_ours}
    scores = {impl: run(model, folder) for impl, run in runs.items()}
    assert abs(scores["timm"] - scores["fastdeit"]) < 1e-9, scores
    least = dict.fromkeys(runs, float("inf"))
    for _ in range(PASSES):
        for impl, run in runs.items():
            least[impl] = min(least[impl], measure_ms(run, model, folder))
    rows: list[Row] = []
    for impl, spent in least.items():
        row: Row = {"model": name, "impl": impl, "cpu_ms": round(spent, 3)}
        rows.append(row | {"ratio": round(least["timm"] / spent, 3)})
        print(*rows[-1].values())
    return rows


def main() -> None:
    parser = harness.make_parser(__doc__)
    parser.add_argument("-o", "--output", type=Path, default=harness.RESULTS / "cpu-evaluate.csv")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    models = {"preprocessing": Nothing()}
    models |= {name: timm.create_model(name, num_classes=2) for name in MODELS}
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), 64, links=IMAGES // 64)
        rows: list[Row] = []
        for name, model in models.items():
            rows += compare(name, model.eval().requires_grad_(False), Path(folder) / "train")
    append(args.output, rows, batch=BATCH)


if __name__ == "__main__":
    main()
