"""The student's initial weights: their bits, their distributions, and what they depend on."""

import functools
import statistics

import numpy as np
import pytest
import scipy.stats
import timm
import torch

from fastdeit.models.initialisation import draw_normal, draw_uniform, initialise_student
from fastdeit.models.student import Student, build_student
from fastdeit.storage.tensor_files import hash_tensors

NAME = "deit_tiny_distilled_patch16_224"
BASE = NAME.replace("tiny", "base")

# the parameters that are drawn, by kind: an ending of their names
KINDS = ["qkv.weight", "attn.proj.weight", "fc1.weight", "fc2.weight", "head.weight"]
KINDS += ["head_dist.weight", "pos_embed", "dist_token"]
KINDS += ["patch_embed.proj.weight", "patch_embed.proj.bias"]


@functools.cache
def make_student(seed: int = 0) -> Student:
    return build_student(NAME, num_classes=1000, qkv_bias=True, seed=seed)


@functools.cache
def make_timm_student() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(NAME, num_classes=1000)


def values_of(model: torch.nn.Module, kind: str) -> np.ndarray:
    """Return the values of all parameters whose names have an ending."""
    found = [value.flatten() for name, value in model.named_parameters() if name.endswith(kind)]
    return torch.cat(found).detach().numpy()


def test_weights_are_the_same_bits_everywhere() -> None:
    expected = "e1bd3bcdd753b34c0c081b0bf903130c8cad34e3aa8993a0e63dd0faadfd0ea7"
    student = build_student(NAME, num_classes=1000, seed=0)
    assert hash_tensors(student.state_dict()) == expected


@pytest.mark.slow
def test_weights_of_the_base_size_are_the_same_bits_everywhere() -> None:
    expected = "bfa14045e78c7b573972289f6b80644171fab2fa9d73ed293a584656c562c95c"
    assert hash_tensors(build_student(BASE, num_classes=1000).state_dict()) == expected


def test_torchs_generator_decides_nothing() -> None:
    sizes = {"num_classes": 10, "depth": 1}
    torch.manual_seed(1)
    first = build_student(NAME, **sizes)
    torch.manual_seed(2)
    second = build_student(NAME, **sizes)
    assert hash_tensors(first.state_dict()) == hash_tensors(second.state_dict())


def test_a_parameter_depends_on_seed_and_name_alone() -> None:
    deep = build_student(NAME, num_classes=1000, depth=2, seed=5)
    shallow = build_student(NAME, num_classes=10, depth=1, seed=5)
    for name, value in shallow.named_parameters():
        if not name.startswith("head"):
            assert torch.equal(value, deep.get_parameter(name)), name
    assert torch.equal(shallow.head.weight, deep.head.weight[:10])


@pytest.mark.parametrize("kind", KINDS)
def test_distributions_are_those_of_timm(kind: str) -> None:
    ours = values_of(make_student(), kind)
    theirs = values_of(make_timm_student(), kind)
    assert ours.shape == theirs.shape
    assert scipy.stats.ks_2samp(ours, theirs).pvalue > 1e-3


def test_the_class_token_has_deits_distribution() -> None:
    # timm draws it with a standard deviation of 1e-6
    token = np.concatenate([values_of(make_student(seed), "cls_token") for seed in (0, 1)])
    assert scipy.stats.kstest(token / 0.02, "norm").pvalue > 1e-3


def test_biases_and_norms_are_constants() -> None:
    drawn = (*KINDS, "cls_token")
    for name, value in make_student().named_parameters():
        if name.endswith(drawn):
            continue
        constant = (
            torch.ones_like if "norm" in name and name.endswith("weight") else torch.zeros_like
        )
        assert torch.equal(value, constant(value)), name


def test_parameters_and_seeds_are_independent() -> None:
    size = torch.Size([100_000])
    draws = [draw_normal(seed, name, size, 1.0) for seed, name in ((0, "a"), (0, "b"), (1, "a"))]
    correlations = torch.corrcoef(torch.stack(draws)) - torch.eye(3)
    assert correlations.abs().max() < 5 / 100_000**0.5
    neighbours = torch.corrcoef(torch.stack([draws[0][:-1], draws[0][1:]]))[0, 1]
    assert abs(neighbours) < 5 / 100_000**0.5


def test_normal_values_are_the_inverse_distribution_function_of_the_uniform_ones() -> None:
    size = torch.Size([70_000])  # more than two chunks
    uniform = draw_uniform(3, "a", size, 0.5).double() + 0.5
    inside = ((uniform > 1e-4) & (uniform < 1 - 1e-4)).nonzero()[:, 0]
    inverse = statistics.NormalDist().inv_cdf
    expected = torch.tensor([inverse(u) for u in uniform[inside].tolist()])
    normal = draw_normal(3, "a", size, 1.0)[inside]
    torch.testing.assert_close(normal, expected, rtol=1e-5, atol=3e-4)


def test_the_tails_are_those_of_the_normal_distribution() -> None:
    values = draw_normal(0, "tails", torch.Size([4_000_000]), 1.0)
    for bound in (1.5, 2.5, 3.5, 4.5):
        expected = len(values) * 2 * scipy.stats.norm.sf(bound)
        found = (values.abs() > bound).sum().item()
        assert abs(found - expected) < 5 * expected**0.5 + 1, bound
    assert 4.8 < values.abs().max() < 6.3


def test_uniform_values_fill_their_range() -> None:
    values = draw_uniform(0, "range", torch.Size([100_000]), 0.25)
    assert scipy.stats.kstest(values.numpy(), "uniform", (-0.25, 0.5)).pvalue > 1e-3
    assert values.abs().max() <= 0.25


def test_other_dtypes_get_the_rounded_values_and_the_meta_device_none() -> None:
    sizes = {"num_classes": 10, "depth": 1}
    exact = build_student(NAME, **sizes)
    half = build_student(NAME, **sizes).bfloat16()
    initialise_student(half, 0)
    assert torch.equal(half.head.weight, exact.head.weight.bfloat16())
    with torch.device("meta"):
        assert build_student(NAME, **sizes).head.weight.is_meta
