"""Predictions: equal to the evaluation's logits, in any batches, whatever else lies there."""

from pathlib import Path

import pytest
import torch

from fastdeit.analysis.attention_maps import record_attention
from fastdeit.data.graphs.options import PipelineOptions
from fastdeit.data.indexing import build_index
from fastdeit.data.loaders.evaluation import EvalLoader
from fastdeit.inference.images import find_images
from fastdeit.inference.load import LoadedModel, load_model
from fastdeit.inference.predict import Prediction, predict_images, rank_classes
from fastdeit.training.evaluation import student_heads
from tests.support.images import CLASSES, write_shapes
from tests.support.trained import VIEW, write_student


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("predict") / "data")


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedModel:
    return load_model(write_student(tmp_path / "weights", CLASSES))


@torch.no_grad()
def test_probabilities_are_those_of_the_evaluation(root: Path, loaded: LoadedModel) -> None:
    index = build_index(root, "val")
    options = PipelineOptions(VIEW.mean, VIEW.std, num_threads=1)
    (batch,) = EvalLoader(index, options, batch_size=9, input_size=32, crop_pct=VIEW.crop_pct)
    logits = student_heads(loaded.model)(batch.images)
    predictions = list(predict_images(loaded, find_images([str(root / "val")])))
    assert len(predictions) == 9
    for head in ("cls", "dist", "both"):
        found = torch.stack([prediction.probabilities[head] for prediction in predictions])
        assert torch.equal(found, logits[head].softmax(1))
        assert torch.allclose(found.sum(1), torch.ones(9))
    mean = ((logits["cls"] + logits["dist"]) / 2).softmax(1)
    assert torch.equal(predictions[4].probabilities["both"], mean[4])


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_unreadable_images_keep_their_place(
    root: Path, loaded: LoadedModel, tmp_path: Path, batch_size: int
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    good = find_images([str(root / "val")])[:3]
    paths = [str(bad), good[0], str(bad), str(bad), good[1], good[2], str(bad)]
    found = list(predict_images(loaded, paths, batch_size=batch_size, with_attention=True))
    assert [prediction.image.path for prediction in found] == paths
    alone = {path: next(predict_images(loaded, [path])) for path in good}
    for prediction in found:
        if prediction.image.fault:
            assert not prediction.probabilities and prediction.maps is None
            assert rank_classes(prediction, 5) == []
            continue
        wanted = alone[prediction.image.path].probabilities["both"]
        torch.testing.assert_close(prediction.probabilities["both"], wanted)
        assert prediction.maps is not None
        assert prediction.image.pixels is not None
        with torch.no_grad(), record_attention(loaded.model) as record:
            loaded.model(prediction.image.pixels[None])
        torch.testing.assert_close(prediction.maps.rollout, record.maps().rollout)


def test_classes_are_ranked_by_both_heads(root: Path, loaded: LoadedModel) -> None:
    (path,) = find_images([str(root / "val")])[:1]
    prediction: Prediction = next(predict_images(loaded, [path]))
    ranked = rank_classes(prediction, 2)
    assert len(ranked) == 2 and len(rank_classes(prediction, 9)) == 3
    first, second = ranked
    assert first.label == int(prediction.probabilities["both"].argmax())
    assert first.probabilities["both"] > second.probabilities["both"]
    for head, value in second.probabilities.items():
        assert value == prediction.probabilities[head][second.label]


def test_a_model_with_one_head_has_one_probability(root: Path, tmp_path: Path) -> None:
    loaded = load_model(write_student(tmp_path / "plain", CLASSES, distilled=False))
    prediction = next(predict_images(loaded, find_images([str(root / "val")])[:1]))
    assert set(prediction.probabilities) == {"both"}
