"""`fastdeit preview`: the same ordinals give the same picture, and its steps lead to the output of
the training pipeline."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdeit.commands.data.preview import preview_command, samples, sheet
from fastdeit.config.cli import parse_config
from fastdeit.data.build import build_train_index
from fastdeit.plan.build import build_plan
from fastdeit.plan.operations import OPS
from fastdeit.plan.plan import Plan
from tests.support.images import write_shapes

FLAGS = ["--input-size", "48", "--reprob", "1.0", "--aa", "rand-m9-mstd0.5-p1.0-inc1"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("preview") / "data")


def parts(root: Path, *flags: str):  # type: ignore[no-untyped-def]
    config, _ = parse_config(["--data-path", str(root), *FLAGS, *flags], "test")
    index = build_train_index(config)
    return index, build_plan(config, index.sizes), config


def run(root: Path, output: Path, *flags: str) -> bytes:
    assert preview_command(["--data-path", str(root), "-o", str(output), *FLAGS, *flags]) == 0
    return output.read_bytes()


def test_equal_ordinals_give_equal_pictures(root: Path, tmp_path: Path) -> None:
    one, again = (run(root, tmp_path / name, "--ordinals", "2,5") for name in ("a.png", "b.png"))
    assert one == again
    assert run(root, tmp_path / "c.png", "--ordinals", "2,6") != one
    assert run(root, tmp_path / "d.png", "--ordinals", "2,5", "--epoch", "1") != one
    assert min(Image.open(tmp_path / "a.png").size) > 200


def test_steps_lead_to_the_images_of_training(root: Path) -> None:
    index, plan, config = parts(root)
    ordinals = np.arange(8)
    draws = plan.draw(0, ordinals)
    for row, cells in enumerate(samples(index, plan, config, ordinals, 0)):
        assert len(cells) == 2 + plan.spec.layers + 2
        stored, _, *_, augmented, erased, mixed = (cell.picture for cell in cells)
        assert stored.shape[:2] == tuple(index.sizes[draws.image_index[row]])
        assert cells[0].box == tuple(draws.crop[row])
        y, x, height, width = draws.erase[row]
        inside = np.zeros((48, 48), bool)
        inside[y : y + height, x : x + width] = True
        assert inside.any() and not np.array_equal(erased, augmented)
        np.testing.assert_array_equal(erased[~inside], augmented[~inside])
        title = cells[-1].title
        assert f"{draws.lam[row]:.2f}" in title
        assert index.classes[index.labels[draws.image_index[row]]] in title
        box = draws.box[row]
        outside = np.ones((48, 48), bool)
        outside[box[0] : box[2], box[1] : box[3]] = False
        if box.any():
            np.testing.assert_array_equal(mixed[outside], erased[outside])


@pytest.mark.slow
def test_three_augment_and_simple_crop_are_shown(root: Path) -> None:
    index, plan, config = parts(root, "--aa", "3a", "--src")
    titles = [cell.title for cell in samples(index, plan, config, np.arange(2), 0)[0]]
    assert sum(title.startswith(("Brightness", "Contrast", "Color")) for title in titles) == 3
    assert sum(title.startswith(("Grayscale", "Solarize", "GaussianBlur")) for title in titles) == 1


def test_sheet_has_every_operation(root: Path) -> None:
    index, plan, config = parts(root)
    rows = sheet(index, plan, config, np.arange(1), 0)
    assert [row[0].title for row in rows] == list(OPS)
    by_name = {row[0].title: row for row in rows}
    assert all(len(by_name[name]) == 7 for name in OPS[:15])
    rotated = by_name["Rotate"]
    assert rotated[1].title == "m -9: Rotate -27.0 degrees"
    changed = [
        name for name, row in by_name.items() if not np.array_equal(row[0].picture, row[-1].picture)
    ]
    assert set(OPS) - set(changed) <= {"AutoContrast"}


@pytest.mark.parametrize("ordinals", ["x", "7-2", "-1", "0-99", "1000"])
def test_bad_ordinals_are_named(
    root: Path, ordinals: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = ["--data-path", str(root), "-o", str(tmp_path / "x.png")]
    with pytest.raises(SystemExit, match="2"):
        preview_command([*paths, f"--ordinals={ordinals}", *FLAGS])
    assert "--ordinals" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_plan_is_that_of_the_run(root: Path) -> None:
    plan: Plan = parts(root)[1]
    assert plan.spec.repeats == 2 and plan.spec.layers == 2


def test_help_describes_the_preview_itself(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        preview_command(["--help"])
    said = " ".join(capfd.readouterr().out.replace("│", " ").split())
    assert end.value.code == 0 and "Draw chosen samples as the model will see them" in said
    assert "--ordinals" in said and "Train a distilled DeiT" not in said
