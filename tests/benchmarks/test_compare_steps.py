"""`benchmarks.compare_steps`: forms, hashes, and the comparison of two recordings.

.venv/bin/python -m pytest tests/benchmarks/test_compare_steps.py, about 10 s
"""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import compare_steps
from benchmarks.compare_steps import compare, forms, hash_tensors
from fastdeit.distributed.world import init_distributed
from tests.support.tiny_student import BATCH, configure, make_trainer


def test_forms_have_unique_names_and_even_micro_batches() -> None:
    for world_size in (1, 2):
        found = list(forms(world_size))
        assert len({name for name, *_ in found}) == len(found) == 25
        assert all(micro % 2 == 0 and BATCH // world_size % micro == 0 for _, micro, _ in found)


def test_hash_depends_on_names_and_single_bits() -> None:
    value = torch.zeros(3, 2, dtype=torch.bfloat16)
    inputs: list[dict[str, torch.Tensor]] = [{"a": value}, {"b": value}, {"a": -value}, {}]
    hashes = {hash_tensors(named) for named in inputs}
    assert len(hashes) == 4
    assert hash_tensors({"a": value.t().clone().t()}) in hashes


def test_restored_form_equals_the_recorded_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_steps, "STEPS", 2)
    world = init_distributed()
    config = configure(zero_stage=2)
    for folder, restore in (("one", None), ("other", tmp_path / "one" / "form")):
        trainer = make_trainer(config, world)
        path = tmp_path / folder
        path.mkdir()
        found = compare_steps.record_form(trainer, BATCH, world, path / "form", restore)
        (path / "steps.json").write_text(json.dumps({"form": found}))
    assert compare(tmp_path / "one", tmp_path / "other") == 0
    found["more"][-1] += 1e-7
    (tmp_path / "other" / "steps.json").write_text(json.dumps({"form": found}))
    assert compare(tmp_path / "one", tmp_path / "other") == 1
    (tmp_path / "other" / "steps.json").write_text(json.dumps({"another": found}))
    assert compare(tmp_path / "one", tmp_path / "other") == 1
