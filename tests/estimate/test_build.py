"""Estimates beside what was measured: committed runs, a small checkpoint, a small cache.

python -m pytest tests/estimate/test_build.py, 6 CPU seconds without the imports
"""

import csv
import json
from pathlib import Path

import pytest

from benchmarks.measuring.trainers import make_config, make_trainer
from fastdeit.checkpoint.files import write_files
from fastdeit.config.changes import read_settings
from fastdeit.config.recipes import RECIPES, find_recipe
from fastdeit.data.counts import read_counts
from fastdeit.distributed.world import init_distributed
from fastdeit.estimate import build, rates
from fastdeit.estimate.gpus import GPUS, find_gpu
from fastdeit.estimate.lines import Estimate
from fastdeit.estimate.outputs import count_cache_bytes
from fastdeit.estimate.roofline import H100
from fastdeit.estimate.samples import IMAGENET
from fastdeit.library.training import estimate_run
from tests.support.cache_runs import FILES, Setting
from tests.support.launching import ROOT

FASHION = ROOT / "benchmarks" / "results" / "fashion_mnist"
TINY = "deit_tiny_distilled_patch16_224"
SMALL = find_recipe("deit").replace(model={"model": TINY}, distill={"teacher_model": "resnet18"})
"""DeiT's recipe with networks that are estimated quickly."""


@pytest.fixture
def without_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the search for the largest micro-batch, which takes most of an estimate's time."""
    monkeypatch.setattr(build, "find_largest", lambda *_: 2)


def is_within(found: Estimate, section: str, name: str, value: float) -> bool:
    line = found.find(section, name)
    assert line.low is not None and line.high is not None
    return line.low <= value <= line.high


def test_the_committed_run_on_fashion_mnist_is_within_the_estimate() -> None:
    config = read_settings(FASHION / "config.yaml", "test")
    found = estimate_run(config, gpu="cpu", gpus=2, images=60_000, recipe="fashion_mnist")
    log = [json.loads(line) for line in (FASHION / "metrics.jsonl").read_text().splitlines()]
    first, last = log[0], log[-1]
    assert found.find("samples", "steps").value == last["step"] == 11_244
    seen = max(line.get("images_seen", 0) for line in log)
    assert found.find("samples", "samples").value == seen
    hours = (last["time"] - first["time"]) * (11_244 / (11_244 - first["step"])) / 3600
    assert is_within(found, "time", "the run", hours)
    memory = max(line.get("memory_gb", 0) for line in log)
    assert is_within(found, "memory", "a process", memory)


def test_a_measured_step_of_the_digits_is_within_the_estimate() -> None:
    found = estimate_run(find_recipe("digits"), gpu="cpu", gpus=1, recipe="digits")
    with (ROOT / "benchmarks" / "results" / "cpu-step.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["student"] == "digits"]
    row = next(row for row in rows if (row["dtype"], row["threads"]) == ("fp32", "1"))
    assert found.find("samples", "steps").value == 36 * (1442 // 32)
    assert is_within(found, "time", "a step", float(row["ours_ms"]))


def test_bytes_of_a_checkpoint_are_those_of_its_tensors(tmp_path: Path) -> None:
    config = make_config("toy", 2, precision="fp32")
    trainer = make_trainer(config, init_distributed())
    tensors, state = trainer.state.gather()
    trainer.engine.destroy()
    write_files(tmp_path, tensors, state)
    nbytes = sum(tensor.nbytes for named in tensors.values() for tensor in named.values())
    found = estimate_run(config, gpu="cpu", gpus=1, images=1000)
    line = found.find("checkpoints", "one")
    assert line.value == pytest.approx(nbytes / 1e9, rel=1e-12)
    on_disk = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert 0 < on_disk - nbytes < 2e5


def test_bytes_of_a_teacher_cache_are_those_of_its_files(tmp_path: Path) -> None:
    setting = Setting(tmp_path)
    for kind, flags in (("hard", ()), ("topk", ("--kind", "topk", "--k", "3"))):
        folder = tmp_path / kind
        assert setting.build(folder, *flags, epochs="0-1") == 0
        files = sum((folder / name).stat().st_size for name in FILES)
        assert count_cache_bytes(kind, 48, 3, 2) == files
    counts = read_counts(setting.data, "train")
    assert counts is not None
    sizes = [path.stat().st_size for path in (setting.data / "train").rglob("*.*")]
    assert (counts.images, counts.classes, counts.nbytes) == (48, 3, sum(sizes))
    data = build.count_data(SMALL.replace(data={"data_path": str(setting.data)}), None, None)
    assert (data.images, data.basis) == (48, "the index in --data-path")


@pytest.mark.usefixtures("without_search")
def test_a_cache_takes_the_teacher_out_of_the_step() -> None:
    live = estimate_run(SMALL)
    read = estimate_run(SMALL.replace(distill={"cache": "CACHE"}))
    (teacher,) = [line.value for line in live.lines if line.name == "the live teacher, a step"]
    assert not [line for line in read.lines if line.name == "the live teacher, a step"]
    steps = [one.find("time", "a step").value or 0 for one in (live, read)]
    assert teacher and steps[0] - steps[1] == pytest.approx(teacher)
    memories = [one.find("memory", "a GPU").value or 0 for one in (live, read)]
    # ResNet-18 has 11.7 million parameters
    assert memories[0] - memories[1] > 2 * 11.7e6 / 1e9


@pytest.mark.usefixtures("without_search")
def test_a_row_of_the_gpu_replaces_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    case = {"gpu": "H100", "model": TINY, "batch": 128}
    row = case | {"value": 12_800.0, "source": "h100.csv, a row"}
    tables = rates.read_rates() | {"gpu_steps": [row]}
    monkeypatch.setattr(rates, "read_rates", lambda: tables)
    line = estimate_run(SMALL).find("time", "the model, a step")
    assert (line.value, line.source, line.basis) == (
        pytest.approx(10),
        "measured",
        "h100.csv, a row",
    )
    for other in ({"gpu": "h200"}, {"gpus": 4}):
        line = estimate_run(SMALL, **other).find("time", "the model, a step")
        assert line.source == "model"


@pytest.mark.usefixtures("without_search")
def test_smaller_micro_batches_do_the_same_work_in_more_steps() -> None:
    config = SMALL.replace(distill={"cache": "CACHE"})
    names = ("time", "the model, a step")
    whole, halves = (
        estimate_run(config.replace(optim={"micro_batch": size})).find(*names).value or 0.0
        for size in (128, 64)
    )
    assert whole <= halves < 1.2 * whole


@pytest.mark.usefixtures("without_search")
def test_a_reduction_during_the_backward_pass_hides_a_part_of_the_links() -> None:
    base = find_recipe("deit").replace(distill={"cache": "CACHE"})
    after, hidden = (
        estimate_run(base.replace(run={"overlap_reduce": when}), gpus=16)
        .find("time", "links, a step")
        .value
        or 0.0
        for when in ("off", "auto")
    )
    assert hidden < 0.9 * after


@pytest.mark.parametrize(("every", "times"), [(1, 21), (20, 2), (7, 4)])
def test_evaluations_are_those_of_the_run_and_that_of_its_results(every: int, times: int) -> None:
    config = SMALL.replace(optim={"epochs": 20, "model_ema": False}, run={"eval_epochs": every})
    # a forward pass is a third of the work of training
    assert build._count_evaluated(config, IMAGENET) == pytest.approx(times * 50_000 / 3)
    with_ema = config.replace(optim={"model_ema": True})
    assert build._count_evaluated(with_ema, IMAGENET) == pytest.approx(2 * times * 50_000 / 3)


QUICK = ("transfer",)
"""Recipes that are tried by default; the others with -m slow."""


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in RECIPES],
)
def test_every_recipe_has_an_estimate(recipe: str) -> None:
    config = find_recipe(recipe)
    if not config.model.model:
        config = config.replace(model={"model": TINY})
    images = 8000 if recipe == "transfer" else None
    found = estimate_run(config, gpu="l40s", gpus=2, recipe=recipe, images=images, price=1.0)
    assert found.find("time", "the run").value
    assert found.find("cost", "the run").value == found.find("time", "devices").value
    for line in found.lines:
        assert line.basis and (line.value is None) == (line.source == "unknown"), line
        if line.low is not None:
            assert line.low <= (line.value or 0) <= (line.high or 0), line


@pytest.mark.usefixtures("without_search")
def test_a_teacher_that_cannot_be_counted_makes_the_time_unknown() -> None:
    config = SMALL.replace(distill={"teacher_model": "module:make"})
    found = estimate_run(config, price=1.0)
    assert found.find("time", "a step").source == "unknown"
    assert not [line for line in found.lines if line.section == "cost"]
    assert found.find("teacher cache", "recording").value is None
    assert found.find("samples", "steps").value == 375_300


@pytest.mark.usefixtures("without_search")
def test_more_or_faster_gpus_are_never_slower() -> None:
    config = SMALL.replace(distill={"cache": "CACHE"})
    cases = [("a100", 1), ("a100", 8), ("h100", 8), ("h100", 64)]
    found = [estimate_run(config, gpu=gpu, gpus=gpus) for gpu, gpus in cases]
    hours = [one.find("time", "the run").value or 0.0 for one in found]
    assert hours == sorted(hours, reverse=True)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"gpu": "v100"}, r"--gpu must be one of b200, .*, cpu \(got 'v100'\)"),
        ({"gpus": 0}, r"--gpus must be 1 or more \(got 0\)"),
        ({"gpus": 12}, r"--gpus must be at most 8, or a multiple of it"),
        ({"gpus": 1024}, r"batch_size must be a multiple of 2048 on 1024 processes \(got 1024\)"),
        ({"images": 1}, r"--images must be 2 or more \(got 1\)"),
        ({"images": 500}, r"batch_size must be at most 500, the number of training images"),
        ({"recipe": "transfer"}, r"--images must be given, or fastdeit index run on"),
        ({"price": -1.0}, r"--price must be 0 to 1e\+09"),
        ({"disk_gb_per_s": 0.0}, r"--disk-gb-per-s must be 1e-06 to 1e\+06 \(got 0.0\)"),
    ],
)
def test_a_mistake_names_the_argument(arguments: dict[str, object], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        estimate_run(SMALL, **arguments)  # type: ignore[arg-type]


def test_settings_that_do_not_fit_name_the_argument() -> None:
    config = SMALL.replace(optim={"micro_batch": 100})
    with pytest.raises(ValueError, match="micro_batch must be a divisor of 128"):
        estimate_run(config)
    config = SMALL.replace(run={"precision": "fp32"})
    with pytest.raises(ValueError, match="precision must be auto or bf16 with a GPU"):
        estimate_run(config)


def test_names_of_gpus_are_forgiving_and_their_rates_those_of_the_h100() -> None:
    assert find_gpu("4090") is find_gpu("RTX 4090") is GPUS["rtx-4090"]
    assert GPUS["h100"].reached() == H100
    assert find_gpu("cpu") is None
