"""The error of soft distillation from the k largest logits of a recorded teacher: loss and
gradient beside those of the live teacher, for several k and temperatures.

python -m benchmarks.bench_topk [--classes 1000] [--samples 1024] [--out FOLDER] [train's flags]

The teacher of the flags sees augmented and mixed samples of their data set; its classes need not be
those of the data set. Students: one of equal logits, as before training, and one with half the
teacher's logits and normal noise of half their standard deviation. Rows: <device>-topk.csv.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.measuring import harness
from fastdeit.config.cli import parse_config
from fastdeit.config.schema import Config
from fastdeit.data.build import build_train_index, pipeline_options
from fastdeit.data.loaders.train import OrdinalLoader
from fastdeit.data.quarantine import Quarantine
from fastdeit.distributed.world import init_distributed
from fastdeit.models.teachers.teacher import load_teacher
from fastdeit.models.teachers.view import Preprocessing
from fastdeit.plan.build import build_plan
from fastdeit.teacher_cache.format import Manifest, decode, encode
from fastdeit.teacher_cache.record import compute_logits
from fastdeit.teacher_cache.tail import compare_soft, kept_share

KS = (10, 20, 50, 100, 200, 500)
TAUS = (1.0, 2.0, 3.0, 4.0)
BATCH = 32
COLUMNS = (
    *("date", "commit", "gpu", *harness.PACKAGES, "bench", "setting", "impl", "tau", "k"),
    *("bytes", "kept_pct", "live_loss", "loss", "cosine"),
)


def record_logits(config: Config, classes: int, samples: int) -> torch.Tensor:
    """Return the live teacher's logits, fp32 (samples, classes)."""
    world = init_distributed()
    index = build_train_index(config)
    plan = build_plan(config, index.sizes)
    teacher = load_teacher(
        config.distill.teacher_model,
        config.distill.teacher_path,
        num_classes=classes,
        device=world.device,
        dtype=torch.float32,
        student=Preprocessing(config.data.mean, config.data.std, config.data.input_size),
        asked=config.distill.teacher_view,
    )
    print(f"{teacher.describe()}\n{teacher.describe_view()}")
    size = min(BATCH, plan.num_images // 2 * 2)
    batches = [(epoch, np.arange(size)) for epoch in range(-(-samples // size))]
    options = pipeline_options(config, world)
    quarantine = Quarantine(index)
    loader = OrdinalLoader(index, plan, options, batches, micro_batch=size, quarantine=quarantine)
    found = [logits for _, logits in compute_logits(iter(loader), teacher, torch.float32)]
    loader.close()
    return torch.cat(found)[:samples].cpu()


def make_students(logits: torch.Tensor) -> dict[str, torch.Tensor]:
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    half = 0.5 * logits + 0.5 * logits.std() * noise
    return {"equal logits": torch.zeros_like(logits), "half-trained": half}


def compare(logits: torch.Tensor, k: int, tau: float) -> Iterator[harness.Row]:
    """Yield the row of each student for records of k logits at a temperature."""
    count, classes = logits.shape
    manifest = Manifest("topk", k, classes, 2, {}, chunk=2, tau=tau)
    records = encode(logits, manifest)
    raw = torch.from_numpy(records.view(np.uint8).reshape(count, -1).copy())
    recorded = decode(raw, manifest, hard=False, tau=tau)
    kept = 100 * kept_share(records, manifest, tau).mean()
    for name, student in make_students(logits).items():
        cost = compare_soft(logits, recorded, tau, student)
        yield {
            "impl": name,
            "tau": tau,
            "k": k,
            "bytes": manifest.record.itemsize,
            "kept_pct": f"{kept:.1f}",
            "live_loss": f"{cost.live:.3f}",
            "loss": f"{cost.recorded:.3f}",
            "cosine": f"{cost.cosine:.3f}",
        }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--classes", type=int, default=1000, help="of the teacher")
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=harness.RESULTS, help="folder of the results")
    parsed, flags = parser.parse_known_args(argv)
    config, recipe = parse_config(flags, "bench_topk")
    logits = record_logits(config, parsed.classes, parsed.samples)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    setting = f"{recipe}, {config.distill.teacher_model}, {len(logits)} samples"
    stamp = harness.environment(device) | {"bench": "topk", "setting": setting}
    rows = []
    for tau in TAUS:
        for k in (k for k in KS if k <= parsed.classes):
            rows += [stamp | row for row in compare(logits, k, tau)]
    path = parsed.out / f"{'gpu' if device.type == 'cuda' else 'cpu'}-topk.csv"
    harness.write_rows(path, rows, COLUMNS)
    shown = COLUMNS[COLUMNS.index("impl") :]
    for row in rows:
        print("  ".join(str(row[column]).rjust(12) for column in shown))


if __name__ == "__main__":
    main()
