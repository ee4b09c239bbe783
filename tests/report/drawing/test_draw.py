"""The pictures of a run folder: what they show, and the notes where something is not there."""

import dataclasses
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastdeit.data.build import build_train_index, build_train_loader
from fastdeit.data.packing.pack import pack
from fastdeit.data.quarantine import Quarantine
from fastdeit.display.pixels import denormalise
from fastdeit.distributed.world import World
from fastdeit.kernels.mix import mix
from fastdeit.plan.build import build_plan
from fastdeit.plan.description import describe_sample
from fastdeit.report.drawing.draw import draw_pictures
from fastdeit.report.pictures import Pictures
from fastdeit.report.predictions import write_predictions
from fastdeit.report.record import read_run
from fastdeit.storage.run_folder import RunFolder
from tests.support.cifar import files10, write_files
from tests.support.images import CLASSES, write_shapes
from tests.support.packing import make_job
from tests.support.trained import VIEW
from tests.support.untrained_run import configure, write_run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a data set and a run on it, which no test changes."""
    home = tmp_path_factory.mktemp("made")
    write_run(home / "run", write_shapes(home / "data"))
    return home


@pytest.fixture(scope="module")
def drawn(made: Path) -> Pictures:
    return draw(made / "run", 4)


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    """Return a copy of the folder, whose run names the copied data."""
    copy = shutil.copytree(made, tmp_path / "home")
    settings = RunFolder(copy / "run").config
    settings.write_text(settings.read_text().replace(str(made), str(copy)))
    return copy


def draw(run: Path, images: int = 2) -> Pictures:
    return draw_pictures(read_run(run), images=images)


def decode(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("backend", ["exact", pytest.param("native", marks=pytest.mark.slow)])
def test_samples_are_those_of_the_loader_with_what_was_planned(home: Path, backend: str) -> None:
    run = RunFolder(home / "run")
    lines = [json.loads(line) for line in run.attempts.read_text().splitlines()]
    run.attempts.write_text(json.dumps(lines[0] | {"augment_backend": backend}))
    augment = {"augment_backend": backend}
    config = configure(run.path, home / "data", augment=augment)
    index = build_train_index(config)
    plan = build_plan(config, index.sizes)
    alone = World(0, 1, 0, 1, torch.device("cpu"))
    loader = build_train_loader(config, alone, index, plan, quarantine=Quarantine(index))
    batch = next(loader.epoch(0))
    loader.close()
    draws = plan.draw(0, np.arange(4))
    names = [index.classes[label] for label in batch.labels]
    augmented = denormalise(batch.images, VIEW.mean, VIEW.std)
    mixed = denormalise(mix(batch.unmixed, batch.lam, batch.box), VIEW.mean, VIEW.std)
    drawn = draw(run.path, 4)
    assert len(drawn.samples) == 4 and drawn.notes == ()
    for row, sample in enumerate(drawn.samples):
        assert sample.lines == tuple(describe_sample(draws, row, names))
        assert names[row] in sample.title and index.name(draws.image_index[row]) in sample.alt
        picture = decode(sample.data)
        # 128 px high: an image of 32 px is enlarged fourfold
        for place, expected in ((-1, mixed[row]), (-2, augmented[row])):
            left = picture.shape[1] + (128 + 4) * place + 4
            np.testing.assert_array_equal(picture[2::4, left + 2 : left + 128 : 4], expected)


def test_attention_has_a_map_of_each_token_in_two_forms(drawn: Pictures) -> None:
    assert len(drawn.attention) == 4
    for picture in drawn.attention:
        cells = [decode(picture.data)[:, 132 * place : 132 * place + 128] for place in range(5)]
        assert decode(picture.data).shape == (128, 5 * 128 + 4 * 4, 3)
        assert len({cell.tobytes() for cell in cells}) == 5
        assert "class token and distillation token" in picture.alt
    assert {picture.title.partition(":")[0] for picture in drawn.attention} == set(CLASSES)


def test_tokens_have_cosine_and_distance_by_layer(drawn: Pictures) -> None:
    names = ["learned", "input", "layer 1", "layer 2", "layer 3", "final norm"]
    assert [layer.name for layer in drawn.tokens] == names
    assert all(-1 <= (layer.cosine or 0) <= 1 for layer in drawn.tokens)
    distances = [layer.distance for layer in drawn.tokens]
    assert distances[:2] == [None, None] and distances[-1] is None
    assert all(0 < (distance or 0) < 46 for distance in distances[2:5])


def test_predictions_give_confusions_classes_and_disagreement(drawn: Pictures) -> None:
    # three images a class, of which each second one in the whole order is wrong
    rows = [(row.name, row.images, row.confused_with, row.confused) for row in drawn.classes]
    assert rows == [
        ("circle", 3, "square", 1),
        ("square", 3, "stripe", 2),
        ("stripe", 3, "circle", 1),
    ]
    assert [round(row.top1) for row in drawn.classes] == [67, 33, 67]
    worst = drawn.confusions[0]
    assert (worst.label, worst.predicted, worst.count) == ("square", "stripe", 2)
    assert [picture.title for picture in worst.thumbnails] == [
        "val/square/00.png",
        "val/square/02.jpg",
    ]
    assert drawn.disagreement is not None and drawn.head == "both heads"
    assert drawn.disagreement.between("labels", "model/cls") == 0
    assert drawn.disagreement.between("model/cls", "model/both") == pytest.approx(400 / 9)


def test_nothing_is_written_into_the_run_folder(home: Path) -> None:
    run = home / "run"
    before = {path: path.stat().st_mtime_ns for path in (run, *run.rglob("*"))}
    draw(run)
    assert {path: path.stat().st_mtime_ns for path in (run, *run.rglob("*"))} == before


def test_images_that_were_excluded_before_the_first_step_are_no_samples(home: Path) -> None:
    run = RunFolder(home / "run")
    index = build_train_index(configure(run.path, home / "data"))
    first, second = (sample.alt.split()[2] for sample in draw(run.path).samples)
    rows = {index.name(row): row for row in range(len(index))}
    quarantine = Quarantine(index, file=run.quarantine)
    quarantine.add({rows[first]: "is damaged"})
    quarantine.step = 3
    quarantine.add({rows[second]: "is damaged"})
    names = [sample.alt.split()[2] for sample in draw(run.path).samples]
    assert first not in names and second in names


def test_a_run_that_began_in_a_later_epoch_shows_that(home: Path) -> None:
    run = RunFolder(home / "run")
    config = configure(run.path, home / "data")
    index = build_train_index(config)
    plan = build_plan(config, index.sizes)
    line = json.loads(run.attempts.read_text().splitlines()[0])
    line["step"] = 2 * plan.steps_per_epoch(4) + 1
    run.attempts.write_text(json.dumps(line))
    draws = plan.draw(2, np.arange(2))
    names = [index.classes[label] for label in index.labels[draws.image_index]]
    lines = [tuple(describe_sample(draws, row, names)) for row in range(2)]
    assert [sample.lines for sample in draw(run.path).samples] == lines


def move_data(home: Path) -> None:
    (home / "data").rename(home / "elsewhere")


def remove(*names: str) -> Callable[[Path], None]:
    def change(home: Path) -> None:
        for name in names:
            path = home / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def damage_weights(home: Path) -> None:
    RunFolder(home / "run").model.write_bytes(b"no weights")


def damage_list(home: Path) -> None:
    RunFolder(home / "run").train_images.write_bytes(b"PAR1")


def replace_images(home: Path) -> None:
    for path in (home / "data" / "train").rglob("*.jpg"):
        Image.new("RGB", (9, 7)).save(path)
    for path in (home / "data" / "train").rglob("*.png"):
        path.unlink()


def add_image(home: Path) -> None:
    Image.new("RGB", (40, 40)).save(home / "data" / "val" / "circle" / "new.png")


ALL = {"samples", "attention", "tokens", "confusions", "classes", "disagreement"}
OF_ANSWERS = {"confusions", "classes", "disagreement"}
CASES: dict[str, tuple[Callable[[Path], None], set[str], str]] = {
    "data moved": (move_data, OF_ANSWERS, "the data set is not at"),
    "no settings": (remove("run/config.yaml"), OF_ANSWERS, "the settings of the run are not there"),
    "no weights": (
        remove("run/model.safetensors"),
        ALL - {"attention", "tokens"},
        "no checkpoint at",
    ),
    "damaged weights": (damage_weights, ALL - {"attention", "tokens"}, "picture of attention"),
    "damaged list": (damage_list, OF_ANSWERS, "grid of samples"),
    "no predictions": (remove("run/predictions.parquet"), ALL - OF_ANSWERS, "no predictions"),
    "other training images": (replace_images, ALL - {"samples"}, "cannot be read as they were"),
    "no index": (remove("data/.fastdeit"), {"samples"} | OF_ANSWERS, "has no stored index"),
    "more validation images": (add_image, ALL, "have changed since the newest evaluation"),
    "no validation images": (remove("data/val"), {"samples"} | OF_ANSWERS, "holds no 'val'"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_there_is_a_note_and_the_rest_is_drawn(
    home: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastdeit.data.quarantine.RETRIES_S", ())
    change, rest, note = CASES[case]
    change(home)
    found = draw(home / "run")
    assert {name for name in ALL if getattr(found, name)} == rest
    assert any(note in line for line in found.notes), found.notes
    assert all("\n" not in line and "Error:" not in line for line in found.notes)


def test_a_convnet_has_samples_and_answers_alone(home: Path) -> None:
    import timm
    from safetensors.torch import save_file

    run = RunFolder(home / "run")
    run.model_config.unlink()
    net = timm.create_model("test_resnet", num_classes=3)
    save_file(net.state_dict(), run.model, metadata={"model": "test_resnet"})
    found = draw(run.path)
    assert found.samples and found.classes and not found.attention and not found.tokens
    assert any("no plain self-attention" in note for note in found.notes)


def test_one_class_with_a_hostile_name_is_drawn_raw(tmp_path: Path) -> None:
    name = "<script>alert(1)<\u2215script> {{7*7}} \u202e"
    for split in ("train", "val"):
        folder = tmp_path / "data" / split / name
        folder.mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (40, 36), (50 * number, 0, 0)).save(folder / f"{number}.png")
    found = draw(write_run(tmp_path / "run", tmp_path / "data").path)
    assert found.notes == () and found.confusions == ()
    assert [row.name for row in found.classes] == [name] and found.classes[0].top1 == 100
    assert name in found.samples[0].title and name in found.attention[0].title


@pytest.mark.parametrize("kind", ["shards", "cifar"])
def test_images_in_files_of_many_are_drawn(made: Path, tmp_path: Path, kind: str) -> None:
    data = tmp_path / "data"
    if kind == "cifar":
        write_files(data, files10(binary=True))
    else:
        pack(make_job(made / "data", data))
    found = draw(write_run(tmp_path / "run", data).path)
    assert found.notes == () and len(found.samples) == len(found.attention) == 2
    assert found.confusions[0].thumbnails


def test_a_head_that_reads_no_class_token_has_no_maps(home: Path) -> None:
    import timm

    sizes = {"img_size": 32, "patch_size": 8, "depth": 1, "global_pool": "avg"}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, **sizes)
    timm.models.save_for_hf(model, home / "run", model_args=sizes, safe_serialization=True)
    found = draw(home / "run")
    assert not found.attention and [layer.cosine for layer in found.tokens] == [None]
    assert found.tokens[0].distance is not None


def test_damaged_predictions_are_a_note(home: Path) -> None:
    run = RunFolder(home / "run")
    found = read_run(run.path).predictions
    assert found is not None
    write_predictions(run.predictions, dataclasses.replace(found, labels=found.labels + 7))
    drawn = draw(run.path)
    assert drawn.samples and not drawn.classes
    assert any(note.startswith("count of the answers could not be made") for note in drawn.notes)
