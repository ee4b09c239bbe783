"""A recorded teacher read by the library's loader."""

from typing import Any

import pytest
import torch

from fastdeit.kernels.mix import mix
from fastdeit.library.models import create_teacher
from fastdeit.library.train_loader import create_loader
from fastdeit.teacher_cache.format import CacheError
from fastdeit.teacher_cache.reader import Cache
from tests.support.cache_runs import TEACHER, Setting

SETTINGS: dict[str, Any] = {"batch_size": 16, "input_size": 32, "device": "cpu", "raw": True}


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    made = Setting(tmp_path_factory.mktemp("library_cache"))
    assert made.build(made.root / "cache", epochs="1") == 0
    return made


def test_records_are_what_the_teacher_answers(setting: Setting) -> None:
    folder = str(setting.root / "cache")
    loader = create_loader(setting.data, cache=folder, **SETTINGS)
    teacher = create_teacher(TEACHER, setting.teacher, like=loader)
    assert Cache(folder).coverage().all() and loader.teacher_cache is not None
    for batch in loader:
        logits = teacher(mix(batch.images, batch.lam, batch.box))
        recorded = loader.teacher_output(batch)
        assert recorded is not None and torch.equal(recorded, logits.argmax(1))
    with pytest.raises(CacheError, match="not recorded; use cache_miss live or ground-truth"):
        next(iter(loader))  # epoch 1
    loader.close()


def test_a_cache_of_other_samples_is_refused(setting: Setting) -> None:
    folder = str(setting.root / "cache")
    with pytest.raises(CacheError, match="^cache: .* was recorded for another run: .*reprob"):
        create_loader(setting.data, cache=folder, reprob=0.5, **SETTINGS)
    with pytest.raises(CacheError, match="nowhere"):
        create_loader(setting.data, cache="nowhere", **SETTINGS)
    plain = create_loader(setting.data, **SETTINGS)
    assert plain.teacher_output(next(iter(plain))) is None
    plain.close()
