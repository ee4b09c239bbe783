"""Another view of a model: the position embedding follows, a size that does not fit is named."""

from pathlib import Path

import pytest
import timm
import torch

from fastdeit.inference.load import LoadedModel, build_transform, load_model
from fastdeit.inference.views import change_view
from fastdeit.models.hub import EvalView
from tests.support.trained import VIEW, write_student


def load_timm(name: str) -> LoadedModel:
    model = timm.create_model(name).eval()
    return LoadedModel(model, name, VIEW._replace(size=160), None, name, "", {})


def test_transform_is_that_of_timm_alone(tmp_path: Path) -> None:
    folder = write_student(tmp_path, ("cat", "dog"))
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    ours = build_transform(load_model(folder).view)
    assert str(ours) == str(theirs) and "size=36" in str(ours)


def test_a_student_sees_another_size_as_timm_does(tmp_path: Path) -> None:
    folder = write_student(tmp_path, ("cat", "dog"))
    changed = change_view(load_model(folder), VIEW._replace(size=48))
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=48).eval()
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(changed.model(images), theirs(images), rtol=1e-4, atol=1e-5)
    assert changed.view.size == 48


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_models_of_timm_see_another_size(name: str) -> None:
    changed = change_view(load_timm(name), VIEW._replace(size=96))
    assert changed.model(torch.zeros(1, 3, 96, 96)).shape == (1, 1000)


@pytest.mark.parametrize("size", [50, 4])
def test_a_size_that_does_not_fit_is_named(tmp_path: Path, size: int) -> None:
    loaded = load_model(write_student(tmp_path, ("cat", "dog")))
    with pytest.raises(
        ValueError, match=r"--eval-input-size must be a size for deit_tiny"
    ) as error:
        change_view(loaded, VIEW._replace(size=size))
    assert "\n" not in str(error.value)


def test_the_same_size_changes_no_weights(tmp_path: Path) -> None:
    loaded = load_model(write_student(tmp_path, ("cat", "dog")))
    view: EvalView = VIEW._replace(crop_pct=1.0)
    changed = change_view(loaded, view)
    assert changed.model is loaded.model and changed.view == view
