"""The cost of the largest logits alone: against the loss of training and torch's own softmax."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.bench_topk import compare
from fastdeit.teacher_cache.format import Manifest, decode, encode
from fastdeit.teacher_cache.reader import Cache
from fastdeit.teacher_cache.tail import compare_soft, kept_share, read_some_records
from fastdeit.teacher_cache.writer import CacheWriter, create_cache
from tests.teacher_cache.test_reader import flip

CLASSES = 50
TAU = 3.0


def make_logits(count: int = 16) -> torch.Tensor:
    return 4 * torch.randn(count, CLASSES, generator=torch.Generator().manual_seed(0))


def make_manifest(k: int, samples: int = 16) -> Manifest:
    return Manifest("topk", k, CLASSES, samples, {}, chunk=8, tau=TAU)


@pytest.mark.parametrize("tau", [1.0, TAU])
@pytest.mark.parametrize("k", [1, 7, CLASSES])
def test_kept_share_is_the_probability_of_the_largest(k: int, tau: float) -> None:
    logits = make_logits()
    share = kept_share(encode(logits, make_manifest(k)), make_manifest(k), tau)
    expected = (logits / tau).softmax(1).topk(k).values.sum(1)
    np.testing.assert_allclose(share, expected, rtol=5e-3)


def test_comparison_is_that_of_the_loss() -> None:
    """tau² KL, the gradient (softmax of the student - that of the teacher), by hand."""
    live, student = make_logits(), make_logits().roll(3, 1)
    recorded = live.roll(1, 0)
    cost = compare_soft(live, recorded, TAU, student)
    own = (student / TAU).softmax(1)
    losses = []
    gradients = []
    for target in (live, recorded):
        other = (target / TAU).softmax(1)
        losses.append(TAU**2 * (other * (other.log() - own.log())).sum(1).mean().item())
        gradients.append(own - other)
    assert (cost.live, cost.recorded) == pytest.approx(losses, rel=1e-5)
    cosine = F.cosine_similarity(gradients[0], gradients[1]).mean().item()
    assert cost.cosine == pytest.approx(cosine, abs=1e-5)


def test_cost_falls_with_k_and_is_none_for_all_classes() -> None:
    logits = make_logits()
    costs = []
    for k in (1, 5, 20, CLASSES):
        manifest = make_manifest(k)
        raw = torch.from_numpy(encode(logits, manifest).view(np.uint8).reshape(16, -1).copy())
        costs.append(compare_soft(logits, decode(raw, manifest, hard=False, tau=TAU), TAU))
        row = next(compare(logits, k, TAU))
        assert row["cosine"] == f"{costs[-1].cosine:.3f}"
    assert sorted(cost.cosine for cost in costs) == [cost.cosine for cost in costs]
    # a flat tail is nearer to a student of equal logits
    assert sorted(cost.recorded for cost in costs) == [cost.recorded for cost in costs]
    assert costs[-1].cosine > 0.99999
    assert costs[-1].recorded == pytest.approx(costs[-1].live, rel=1e-3)


def test_damaged_chunks_are_not_counted(tmp_path: Path) -> None:
    manifest = make_manifest(5)
    create_cache(tmp_path, manifest)
    assert len(read_some_records(Cache(tmp_path))) == 0
    writer = CacheWriter(tmp_path)
    records = encode(make_logits(), manifest)
    for chunk in range(2):
        writer.write(0, chunk, records[8 * chunk : 8 * chunk + 8], np.arange(8))
    writer.close()
    assert (read_some_records(Cache(tmp_path)) == records).all()
    flip(tmp_path / "records.bin", 3)
    assert (read_some_records(Cache(tmp_path)) == records[8:]).all()
