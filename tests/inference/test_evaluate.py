"""Any checkpoint on any data set: equal to plain timm, whatever the resize; published subsets; what
does not match is refused."""

import csv
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import ImageNetInfo, create_dataset, create_loader
from timm.utils import accuracy
from torch import nn

from fastdeit.data.build import build_eval_index
from fastdeit.data.loaders.evaluation import EvalBatch
from fastdeit.distributed.world import World
from fastdeit.inference import evaluate as evaluation
from fastdeit.inference.evaluate import ReadOptions, evaluate_checkpoint
from fastdeit.inference.scores import Recorder
from fastdeit.models.hub import EvalView
from fastdeit.training.evaluation import Outputs

SYNSETS = ImageNetInfo().label_names()
SIZES = [(48, 64), (70, 41), (40, 40), (33, 120), (64, 64), (55, 90), (200, 37)]


def write_images(folder: Path, classes: list[str], each: int = 5) -> Path:
    """Write odd-sized images, of a colour that belongs to the class; return the folder."""
    rng = np.random.default_rng(4)
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            height, width = SIZES[(label + number) % len(SIZES)]
            small = rng.integers(0, 256, (height // 9 + 2, width // 9 + 2, 3), np.uint8)
            small[..., label % 3] //= 2 + label
            image = Image.fromarray(small).resize((width, height))
            image.save(folder / name / f"{number}.{('png', 'jpg')[number % 2]}")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    write_images(root / "val", [f"class{number}" for number in range(7)])
    return root


def save_model(file: Path, name: str, classes: int, **arguments: Any) -> nn.Module:
    """Save a timm model with weights that give each image another answer."""
    torch.manual_seed(1)
    model = timm.create_model(name, num_classes=classes, **arguments).eval()
    with torch.no_grad():
        for parameter in model.get_classifier().parameters():  # type: ignore[operator]
            parameter.normal_(std=1.0 if parameter.dim() > 1 else 0.1)
    save_file(model.state_dict(), file)
    return model


@torch.no_grad()
def measure_with_timm(
    model: nn.Module, folder: Path, batch_size: int, **view: Any
) -> tuple[torch.Tensor, list[float]]:
    """Return logits, top-1 and top-5 as timm's validate.py computes them, without fastdeit."""
    loader = create_loader(
        create_dataset("", root=str(folder), split="validation"),
        batch_size=batch_size,
        use_prefetcher=False,
        num_workers=0,
        **view,
    )
    outputs, hits = [], np.zeros(2)
    for batch, target in loader:
        outputs.append(model(batch))
        hits += [float(value) * len(target) for value in accuracy(outputs[-1], target, (1, 5))]
    logits = torch.cat(outputs)
    return logits, (hits / len(logits)).tolist()


VIEWS: list[dict[str, Any]] = [
    {"interpolation": "bicubic", "crop_pct": 0.875},
    {"interpolation": "bilinear", "crop_pct": 0.95},
    {"interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "squash"},
    {"interpolation": "bilinear", "crop_pct": 0.9, "crop_mode": "border"},
    {"interpolation": "lanczos", "crop_pct": 1.15},
]


@pytest.mark.parametrize("view", VIEWS, ids=str)
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_scores_equal_timms_to_the_last_digit(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    view: dict[str, Any],
) -> None:
    arguments = {"img_size": 32} if name == "test_vit" else {}
    model = save_model(tmp_path / "model.safetensors", name, 7, **arguments)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    expected, (top1, top5) = measure_with_timm(
        model, images, 8, input_size=(3, 32, 32), mean=mean, std=std, **view
    )
    seen = []

    class Watched(Recorder):
        def add(self, batch: EvalBatch, logits: Outputs, best: Outputs) -> None:
            seen.append(logits["model/both"])
            super().add(batch, logits, best)

    monkeypatch.setattr(evaluation, "Recorder", Watched)
    crop = {"eval_crop_ratio": view["crop_pct"], **view}
    crop.pop("crop_pct")
    found = evaluate_checkpoint(
        tmp_path / "model.safetensors",
        images,
        model=name,
        eval_input_size=32,
        mean=mean,
        std=std,
        batch_size=8,
        **crop,
    )
    torch.testing.assert_close(torch.cat(seen)[: len(expected)], expected, rtol=0, atol=1e-5)
    assert 0 < top1 < top5 < 100
    assert [found["results"][f"model/both/top{k}"] for k in (1, 5)] == pytest.approx(
        [top1, top5], abs=1e-10
    )


def test_the_view_of_the_weights_is_taken_unless_another_is_named(
    images: Path, tmp_path: Path
) -> None:
    save_model(tmp_path / "m.safetensors", "test_resnet", 7)
    known = timm.get_pretrained_cfg("test_resnet")
    found = evaluate_checkpoint(tmp_path / "m.safetensors", images, model="test_resnet")["view"]
    assert (found["size"], found["crop_pct"], found["interpolation"]) == (
        (known.test_input_size or known.input_size)[1],
        known.test_crop_pct or known.crop_pct,
        known.interpolation,
    )


def test_weights_of_a_run_without_its_config_json_have_the_resize_of_runs(
    images: Path, tmp_path: Path
) -> None:
    """timm's own weights of this name take bilinear images."""
    model = save_model(tmp_path / "m.safetensors", "test_resnet", 7)
    metadata = {"model": "test_resnet", "input_size": "32", "mean": "[0.5, 0.5, 0.5]"}
    save_file(model.state_dict(), tmp_path / "m.safetensors", metadata)
    view = evaluate_checkpoint(tmp_path / "m.safetensors", images)["view"]
    assert (view["size"], view["interpolation"]) == (32, "bicubic")


@pytest.mark.parametrize("classes", [SYNSETS[7:0:-1], ["3", "12", "1", "999", "20", "100", "0"]])
def test_a_model_of_imagenet_on_codes_or_on_the_numbers_of_v2(
    tmp_path: Path, classes: list[str]
) -> None:
    """In the data set's own folder, as ImageNet-V2 and -A come; equal to timm's --class-map."""
    write_images(tmp_path / "data", classes, each=3)
    model = save_model(tmp_path / "m.safetensors", "test_resnet", 1000)
    options: dict[str, Any] = {"model": "test_resnet", "eval_input_size": 32}
    found = evaluate_checkpoint(tmp_path / "m.safetensors", tmp_path / "data", **options)
    place = {name: SYNSETS.index(name) if name in SYNSETS else int(name) for name in classes}
    view = found["view"]
    loader = create_loader(
        create_dataset("", root=str(tmp_path / "data"), class_map=place),
        input_size=(3, 32, 32),
        batch_size=64,
        use_prefetcher=False,
        num_workers=0,
        **{name: view[name] for name in ("mean", "std", "crop_pct", "interpolation", "crop_mode")},
    )
    images, target = next(iter(loader))
    with torch.no_grad():
        top1, top5 = (float(share) for share in accuracy(model(images), target, (1, 5)))
        loss = nn.functional.cross_entropy(model(images), target).item()
    results = found["results"]
    assert [results["model/both/top1"], results["model/both/top5"]] == pytest.approx([top1, top5])
    assert results["model/both/nll"] == pytest.approx(loss, rel=1e-5)
    assert {row["class"] for row in found["per_class"]} == {
        name if name in SYNSETS else SYNSETS[int(name)] for name in classes
    }


def test_valid_labels_equal_timms(tmp_path: Path) -> None:
    """--valid-labels of timm: the other outputs are no answers."""
    classes = sorted(SYNSETS[:40:6])
    write_images(tmp_path / "data", classes, each=2)
    model = save_model(tmp_path / "m.safetensors", "test_resnet", 1000)
    found = evaluate_checkpoint(
        tmp_path / "m.safetensors",
        tmp_path / "data",
        model="test_resnet",
        eval_input_size=32,
        valid_labels="data",
    )
    view = {name: found["view"][name] for name in ("mean", "std", "crop_pct", "interpolation")}
    loader = create_loader(
        create_dataset("", root=str(tmp_path / "data")),
        input_size=(3, 32, 32),
        batch_size=64,
        use_prefetcher=False,
        num_workers=0,
        **view,
    )
    images, target = next(iter(loader))
    with torch.no_grad():
        outputs = model(images)[:, [SYNSETS.index(name) for name in classes]]
    top1, _ = accuracy(outputs, target, (1, 5))
    loss = nn.functional.cross_entropy(outputs, target).item()
    assert found["results"]["model/both/top1"] == pytest.approx(float(top1))
    assert found["results"]["model/both/nll"] == pytest.approx(loss, rel=1e-5)
    assert found["classes"] == "by name, 7 of 1000 outputs"


def test_real_labels_are_those_that_timm_ships(tmp_path: Path) -> None:
    from timm.data import RealLabelsImagenet

    write_images(tmp_path / "data", SYNSETS[:3], each=4)
    files = sorted((tmp_path / "data").rglob("*.*"))
    for number, file in enumerate(files):
        file.rename(file.with_name(f"ILSVRC2012_val_{number * 7 + 1:08}{file.suffix}"))
    save_model(tmp_path / "m.safetensors", "test_resnet", 1000)
    options: dict[str, Any] = {"model": "test_resnet", "eval_input_size": 32, "real_labels": "timm"}
    found = evaluate_checkpoint(tmp_path / "m.safetensors", tmp_path / "data", **options)
    reference = RealLabelsImagenet([f"ILSVRC2012_val_{i:08}.JPEG" for i in range(1, 50001)])
    done = evaluation_of(tmp_path, **options)
    hits = []
    answers = done.predictions.answers["model/both"]
    for row, best in zip(done.predictions.rows, answers.best, strict=True):
        name = Path(done.index.name(row)).stem
        right = reference.real_labels[f"{name}.JPEG"]
        if right:
            hits.append((best[0] in right, bool(set(best.tolist()) & set(right))))
    expected = (100 * np.array(hits).mean(0)).tolist()
    scores = [found["results"][f"model/both/real_top{k}"] for k in (1, 5)]
    assert scores == pytest.approx(expected)
    files[0].parent.joinpath("other.png").write_bytes(
        next(path for path in files[0].parent.iterdir() if path.suffix == ".png").read_bytes()
    )
    with pytest.raises(ValueError, match="--real-labels must be for images called ILSVRC2012_val"):
        evaluate_checkpoint(tmp_path / "m.safetensors", tmp_path / "data", **options)


def evaluation_of(folder: Path, **options: Any) -> evaluation.Evaluation:
    """Return the `Evaluation` of folder/m.safetensors on folder/data."""
    world = evaluation.find_world()
    loaded = evaluation.load_model(folder / "m.safetensors", model=options["model"])
    loaded = evaluation.change_view(loaded, loaded.view._replace(size=options["eval_input_size"]))
    return evaluation.evaluate_model(
        loaded, folder / "data", "val", evaluation.EvalOptions(), world=world
    )


@pytest.mark.parametrize(
    ("ranks", "size", "share"), [(1, 8, 8), (2, 8, 4), (2, 256, 18), (8, 4, 1)]
)
def test_the_batch_is_that_of_all_processes(
    images: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, size: int, share: int
) -> None:
    index = build_eval_index(images, "val", (), "skip")
    assert len(index) == 35
    monkeypatch.setattr(evaluation, "EvalLoader", lambda *_, **settings: settings)
    loaded: Any = SimpleNamespace(view=EvalView(32, (0.5,) * 3, (0.5,) * 3, 0.9))
    world = World(0, ranks, 0, ranks, torch.device("cpu"))
    settings: Any = evaluation._build_loader(loaded, index, ReadOptions(size), world)
    assert settings["batch_size"] == share


def test_a_list_without_training_images_counts_the_outputs(images: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "m.safetensors", "test_resnet", 7)
    rows = [
        (str(file), name)
        for name in ("class1", "class6")
        for file in sorted((images / "val" / name).iterdir())
    ]
    with (tmp_path / "val.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("image", "label"), *((path, int(name[-1])) for path, name in rows)]
        )
    options: dict[str, Any] = {"model": "test_resnet", "eval_input_size": 32}
    found = evaluate_checkpoint(tmp_path / "m.safetensors", tmp_path, **options)
    whole = evaluate_checkpoint(tmp_path / "m.safetensors", images, **options)
    assert [row["class"] for row in found["per_class"]] == ["1", "6"]
    for row in found["per_class"]:
        (same,) = [one for one in whole["per_class"] if one["class"] == f"class{row['class']}"]
        assert row["both_top1"] == same["both_top1"] and row["images"] == 5


def test_an_image_that_fails_on_the_way_is_named_and_not_scored(tmp_path: Path) -> None:
    save_model(tmp_path / "m.safetensors", "test_resnet", 7)
    data = write_images(tmp_path / "data", [f"class{number}" for number in range(7)])
    options: dict[str, Any] = {"model": "test_resnet", "eval_input_size": 32, "batch_size": 8}
    whole = evaluate_checkpoint(tmp_path / "m.safetensors", data, **options)
    file = data / "class3" / "1.jpg"
    # the index is that of before, as the folder has not changed
    os.utime(data, (1e9, 1e9))
    for folder in data.iterdir():
        os.utime(folder, (1e9, 1e9))
    evaluate_checkpoint(tmp_path / "m.safetensors", data, **options)
    file.write_bytes(bytes(file.stat().st_size))
    found = evaluate_checkpoint(tmp_path / "m.safetensors", data, **options)
    assert (found["images"], whole["images"]) == (34, 35)
    assert found["damaged"] == ["class3/1.jpg: could not be read or decoded"]
    images = {row["class"]: row["images"] for row in found["per_class"]}
    assert images == {f"class{number}": 5 - (number == 3) for number in range(7)}


def test_weights_that_are_not_finite_have_scores_that_are_not(
    images: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    model = save_model(tmp_path / "m.safetensors", "test_resnet", 7)
    broken = {name: value * float("nan") for name, value in model.state_dict().items()}
    save_file(broken, tmp_path / "m.safetensors")
    found = evaluate_checkpoint(
        tmp_path / "m.safetensors", images, model="test_resnet", eval_input_size=32
    )
    assert np.isnan([found["results"][f"model/both/{name}"] for name in ("nll", "ece")]).all()
    assert not [warning for warning in recwarn if warning.category is RuntimeWarning]


def test_damaged_images_are_named_and_the_others_scored(images: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "m.safetensors", "test_resnet", 7)
    data = (
        write_images(tmp_path / "data", [f"class{number}" for number in range(7)]).parent / "data"
    )
    (data / "class3" / "0.png").write_bytes(b"no image")
    options: dict[str, Any] = {"model": "test_resnet", "eval_input_size": 32}
    found = evaluate_checkpoint(tmp_path / "m.safetensors", data, **options)
    assert found["images"] == 34 and len(found["damaged"]) == 1
    assert (
        found["damaged"][0].startswith("./class3/0.png: ") or "class3/0.png" in found["damaged"][0]
    )
    with pytest.raises(ValueError, match=r"1 bad image"):
        evaluate_checkpoint(tmp_path / "m.safetensors", data, bad_images="error", **options)


def test_a_list_may_have_the_names_of_a_class_map(images: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "m.safetensors", "test_resnet", 7)
    (tmp_path / "map.txt").write_text("".join(f"name {number}\n" for number in range(7)))
    file = next((images / "val" / "class6").iterdir())
    (tmp_path / "val.csv").write_text(f"image,label\n{file},name 6\n")
    options: dict[str, Any] = {"model": "test_resnet", "eval_input_size": 32}
    (row,) = evaluate_checkpoint(
        tmp_path / "m.safetensors", tmp_path, class_map=str(tmp_path / "map.txt"), **options
    )["per_class"]
    assert (row["class"], row["images"]) == ("name 6", 1)
    with pytest.raises(ValueError, match="'name 6', not one of the 7 classes"):
        evaluate_checkpoint(tmp_path / "m.safetensors", tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_mode": "centre"}, "crop-mode must be one of center, squash, border"),
        ({"interpolation": "nearest"}, "interpolation must be one of bicubic"),
        ({"batch_size": 0}, "batch-size must be 1 or more"),
        ({"bad_images": "keep"}, "bad-images must be skip or error"),
        ({"augment_backend": "pil"}, "augment-backend must be auto, exact or native"),
        ({"precision": "fp8"}, "precision must be auto, bf16 or fp32"),
        ({"class_map": "map.pkl"}, "class-map must be position, number"),
        ({"real_labels": "timm"}, "real-labels must be for a model of ImageNet's 1,000 classes"),
        ({"split": "gone"}, "holds no 'gone'"),
        ({"teacher_model": "test_resnet"}, "teacher"),
    ],
)
def test_what_cannot_be_scored_is_one_line(
    images: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    save_model(tmp_path / "m.safetensors", "test_resnet", 7)
    whole = {"model": "test_resnet", "eval_input_size": 32, **options}
    with pytest.raises(ValueError, match=message) as error:
        evaluate_checkpoint(tmp_path / "m.safetensors", images, **whole)
    assert "\n" not in str(error.value)


def test_an_unknown_argument_is_a_type_error(images: Path) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument: batchsize"):
        evaluate_checkpoint("x", images, batchsize=3)
