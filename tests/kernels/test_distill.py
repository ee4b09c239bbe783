"""`distill`, reference and kernel, against the loss of 2012.12877 (equations 2 and 3), written out
class by class in float64; the kernel also against dense targets in float64.

.venv/bin/python -m pytest tests/kernels/test_distill.py, about 15 s
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fastdeit.kernels import backend
from fastdeit.kernels.distill import LossParts, distill, distill_reference, mixed_cross_entropy
from fastdeit.kernels.distill_kernels.fused import counter_of, distill_bwd_triton, distill_triton
from tests.kernels import interpreter
from tests.kernels.interpreter import DEVICE
from tests.kernels.properties import HealthCheck, Phase, given, settings, st

interpreter.correct()
BATCH, CLASSES = 6, 11
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Run = tuple[list[torch.Tensor], list[torch.Tensor]]
"""The parts of the loss, and a gradient for each head."""
FORMS = ["none-1", "none-2", "hard-ids", "hard-logits", "soft", "soft-legacy", "hard-1", "soft-1"]
"""Kind, and a variant: the teacher's output, or 1: a model with one head."""


@pytest.fixture(params=["reference", "triton"], autouse=True)
def form(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run each test with the reference and with the kernel."""
    with backend.use_backend(request.param):
        yield


def softmax(logits: list[float], tau: float = 1.0) -> list[float]:
    top = max(logits)
    powers = [math.exp((value - top) / tau) for value in logits]
    return [power / sum(powers) for power in powers]


def mixed_target(
    labels: list[int], lam: list[float], row: int, classes: int, smoothing: float
) -> list[float]:
    off = smoothing / classes
    on = 1 - smoothing + off
    own = [on if k == labels[row] else off for k in range(classes)]
    other = [on if k == labels[row ^ 1] else off for k in range(classes)]
    return [lam[row] * a + (1 - lam[row]) * b for a, b in zip(own, other, strict=True)]


def base_by_hand(
    logits: torch.Tensor, labels: torch.Tensor, lam: torch.Tensor, smoothing: float
) -> float:
    total = 0.0
    for row, values in enumerate(logits.double().tolist()):
        target = mixed_target(labels.tolist(), lam.double().tolist(), row, len(values), smoothing)
        total -= sum(t * math.log(p) for t, p in zip(target, softmax(values), strict=True))
    return total / len(logits)


def distilled_by_hand(
    logits: torch.Tensor, teacher: torch.Tensor, kind: str, tau: float, legacy: bool
) -> float:
    total = 0.0
    rows = zip(logits.double().tolist(), teacher.double().tolist(), strict=True)
    for student_row, teacher_row in rows:
        if kind == "hard":
            total -= math.log(softmax(student_row)[teacher_row.index(max(teacher_row))])
        else:
            pairs = zip(softmax(teacher_row, tau), softmax(student_row, tau), strict=True)
            total += tau**2 * sum(p * math.log(p / q) for p, q in pairs)
    return total / len(logits) / (logits.shape[1] if legacy and kind == "soft" else 1)


def make_inputs(classes: int = CLASSES, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(classes)
    cls_logits, dist_logits, teacher = 3 * torch.randn(3, BATCH, classes, generator=generator)
    labels = torch.randint(classes, (BATCH,), generator=generator)
    labels[3] = labels[2]  # a pair of one class
    lam = torch.tensor([0.3, 0.3, 0.6, 0.6, 0.0, 1.0])
    tensors = {
        "cls_logits": cls_logits.to(dtype),
        "dist_logits": dist_logits.to(dtype),
        "labels": labels,
        "lam": lam,
        "teacher": teacher,
    }
    return {name: tensor.to(DEVICE) for name, tensor in tensors.items()}


@pytest.mark.parametrize("legacy", [False, True], ids=["batchmean", "legacy"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("classes", [2, CLASSES, 257])
def test_distill_equals_the_formula(
    classes: int, kind: str, smoothing: float, legacy: bool
) -> None:
    inputs = make_inputs(classes)
    parts = distill(**inputs, smoothing=smoothing, kind=kind, alpha=0.3, tau=3.0, legacy=legacy)
    base = base_by_hand(inputs["cls_logits"], inputs["labels"], inputs["lam"], smoothing)
    distilled = distilled_by_hand(inputs["dist_logits"], inputs["teacher"], kind, 3.0, legacy)
    assert parts.base.item() == pytest.approx(base, rel=1e-5)
    assert parts.distill.item() == pytest.approx(distilled, rel=1e-5)
    assert parts.loss.item() == pytest.approx(0.7 * base + 0.3 * distilled, rel=1e-5)
    assert parts.loss.dtype == torch.float32 and parts.loss.ndim == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_distill_computes_in_fp32(dtype: torch.dtype) -> None:
    half = make_inputs(dtype=dtype)
    wide = {name: tensor.float() if "logits" in name else tensor for name, tensor in half.items()}
    for kind in ("hard", "soft"):
        setting: dict[str, Any] = {"smoothing": 0.1, "kind": kind, "alpha": 0.5, "tau": 2.0}
        expected = distill(**wide, **setting).loss
        torch.testing.assert_close(distill(**half, **setting).loss, expected, rtol=1e-6, atol=0)


def test_hard_form_accepts_logits_or_class_ids() -> None:
    inputs = make_inputs()
    setting: dict[str, Any] = {"smoothing": 0.1, "kind": "hard", "alpha": 0.5, "tau": 1.0}
    expected = distill(**inputs, **setting)
    for dtype in (torch.int64, torch.int32, torch.uint16):
        inputs["teacher"] = make_inputs()["teacher"].argmax(-1).to(dtype)
        assert torch.equal(distill(**inputs, **setting).loss, expected.loss)


def test_none_form_averages_both_heads() -> None:
    inputs: dict[str, Any] = {**make_inputs(), "teacher": None}
    parts = distill(**inputs, smoothing=0.1, kind="none", alpha=0.5, tau=1.0)
    logits = (inputs["cls_logits"] + inputs["dist_logits"]) / 2
    expected = base_by_hand(logits, inputs["labels"], inputs["lam"], 0.1)
    assert parts.loss.item() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(parts.loss, parts.base) and parts.distill.item() == 0


def test_none_form_accepts_one_head() -> None:
    inputs: dict[str, Any] = {**make_inputs(), "teacher": None, "dist_logits": None}
    parts = distill(**inputs, smoothing=0.0, kind="none", alpha=0.5, tau=1.0)
    expected = base_by_hand(inputs["cls_logits"], inputs["labels"], inputs["lam"], 0.0)
    assert parts.loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_distill_gradients_equal_finite_differences(kind: str) -> None:
    inputs = make_inputs(5)
    heads = [inputs[name].requires_grad_() for name in ("cls_logits", "dist_logits")]
    setting: dict[str, Any] = {"smoothing": 0.1, "kind": kind, "alpha": 0.4, "tau": 2.0}
    gradients = torch.autograd.grad(distill(**inputs, **setting).loss, heads)
    labels, lam, teacher = inputs["labels"], inputs["lam"], inputs["teacher"]
    step = 1e-6
    for row, column in ((0, 0), (2, 3), (5, 4)):
        nudge = torch.zeros(BATCH, 5, dtype=torch.float64, device=DEVICE)
        nudge[row, column] = step
        cls_logits, dist_logits = (head.detach().double() for head in heads)
        cls_up, cls_down = cls_logits + nudge, cls_logits - nudge
        dist_up, dist_down = dist_logits + nudge, dist_logits - nudge
        base = base_by_hand(cls_up, labels, lam, 0.1) - base_by_hand(cls_down, labels, lam, 0.1)
        distilled = distilled_by_hand(dist_up, teacher, kind, 2.0, False)
        distilled -= distilled_by_hand(dist_down, teacher, kind, 2.0, False)
        slopes = (0.6 * base / (2 * step), 0.4 * distilled / (2 * step))
        for gradient, slope in zip(gradients, slopes, strict=True):
            assert gradient[row, column].item() == pytest.approx(slope, abs=1e-6)


def test_none_form_gives_both_heads_a_gradient() -> None:
    inputs: dict[str, Any] = {**make_inputs(), "teacher": None}
    heads = [inputs[name].requires_grad_() for name in ("cls_logits", "dist_logits")]
    loss = distill(**inputs, smoothing=0.1, kind="none", alpha=0.5, tau=1.0).loss
    first, second = torch.autograd.grad(loss, heads)
    assert first.abs().min() > 0 and torch.equal(first, second)


def test_extreme_logits_give_finite_gradients() -> None:
    inputs = make_inputs()
    for name in ("cls_logits", "dist_logits", "teacher"):
        inputs[name] = 1e4 * inputs[name].sign()
    heads = [inputs[name].requires_grad_() for name in ("cls_logits", "dist_logits")]
    for kind in ("hard", "soft"):
        loss = distill(**inputs, smoothing=0.1, kind=kind, alpha=0.5, tau=1.0).loss
        assert loss.isfinite() and all(g.isfinite().all() for g in torch.autograd.grad(loss, heads))


def test_mixed_cross_entropy_without_mixing_equals_torch() -> None:
    inputs = make_inputs()
    logits, labels = inputs["cls_logits"], inputs["labels"]
    unmixed = torch.ones_like(inputs["lam"])
    expected = F.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(mixed_cross_entropy(logits, labels, unmixed, 0.1), expected)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({}, "firm", "must be one of"),
        ({}, "none", "must be None"),
        ({"teacher": None}, "hard", "teacher's output"),
        ({"teacher": torch.zeros(BATCH, dtype=torch.int64)}, "soft", "must be logits"),
        ({"cls_logits": torch.zeros(3, CLASSES)}, "hard", "whole pairs"),
        ({"cls_logits": torch.zeros(BATCH, CLASSES, dtype=torch.float64)}, "hard", "float64"),
        ({"cls_logits": torch.zeros(BATCH)}, "hard", "B, K"),
        (
            {"dist_logits": torch.zeros(BATCH, CLASSES, dtype=torch.bfloat16)},
            "hard",
            "one shape and dtype",
        ),
        ({"teacher": torch.zeros(BATCH, 1)}, "hard", "class ids"),
        ({"teacher": torch.zeros(BATCH)}, "hard", "class ids"),
    ],
)
def test_distill_rejects_wrong_arguments(change: dict[str, Any], kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distill(**{**make_inputs(), **change}, smoothing=0.1, kind=kind, alpha=0.5, tau=1.0)


# the kernel against dense targets in float64

kernel_only = pytest.mark.parametrize("form", ["triton"], indirect=True)


def make_form(
    name: str, classes: int, dtype: torch.dtype = torch.float32, batch: int = 4
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return inputs and setting of one of `FORMS`.

    lam contains 0 and 1, one pair has one class, and no label is the last class.
    """
    kind, _, variant = name.partition("-")
    generator = torch.Generator().manual_seed(classes + batch)
    logits = 3 * torch.randn(3, batch, classes, generator=generator)
    cls_logits, dist_logits, teacher = logits.to(DEVICE).unbind(0)
    labels = torch.randint(classes - 1, (batch,), generator=generator)
    labels[1] = labels[0]
    lam = torch.rand(batch, generator=generator)
    lam[2::4] = 0.0
    lam[3::4] = 1.0
    inputs: dict[str, Any] = {
        "cls_logits": cls_logits.to(dtype, copy=True).requires_grad_(),
        "dist_logits": None,
        "labels": labels.to(DEVICE),
        "lam": lam.to(DEVICE),
        "teacher": None,
    }
    if variant != "1":
        inputs["dist_logits"] = dist_logits.to(dtype, copy=True).requires_grad_()
    if variant == "ids":
        inputs["teacher"] = teacher.argmax(-1).to(torch.uint16)
    elif kind != "none":
        inputs["teacher"] = teacher.to(dtype, copy=True)
    setting = {"smoothing": 0.1, "kind": kind, "alpha": 0.3, "tau": 3.0}
    return inputs, setting | {"legacy": variant == "legacy"}


def heads_of(inputs: dict[str, Any]) -> list[torch.Tensor]:
    return [inputs[key] for key in ("cls_logits", "dist_logits") if inputs[key] is not None]


def dense_loss(inputs: dict[str, Any], setting: dict[str, Any]) -> LossParts:
    """Compute the loss with torch's functions from a dense target, in the dtype of the logits."""
    cls_logits = inputs["cls_logits"]
    dist_logits = inputs["dist_logits"]
    teacher = inputs["teacher"]
    classes = cls_logits.shape[1]
    eps = setting["smoothing"]
    one_hot = F.one_hot(inputs["labels"], classes).to(cls_logits.dtype)
    partner = one_hot[[row ^ 1 for row in range(len(one_hot))]]
    lam = inputs["lam"].to(cls_logits.dtype)[:, None]
    target = (1 - eps) * (lam * one_hot + (1 - lam) * partner) + eps / classes
    if setting["kind"] == "none":
        logits = cls_logits if dist_logits is None else (cls_logits + dist_logits) / 2
        base = F.cross_entropy(logits, target)
        return LossParts(base, base, torch.zeros_like(base))
    base = F.cross_entropy(cls_logits, target)
    dist_logits = cls_logits if dist_logits is None else dist_logits
    if setting["kind"] == "hard":
        decision = teacher.long() if teacher.ndim == 1 else teacher.argmax(-1)
        distilled = F.cross_entropy(dist_logits, decision)
    else:
        tau = setting["tau"]
        logp = F.log_softmax(dist_logits / tau, -1)
        teacher_logp = F.log_softmax(teacher / tau, -1)
        distilled = F.kl_div(logp, teacher_logp, reduction="batchmean", log_target=True) * tau**2
        if setting["legacy"]:
            distilled = distilled / classes
    return LossParts((1 - setting["alpha"]) * base + setting["alpha"] * distilled, base, distilled)


def run_form(
    loss: Callable[..., LossParts],
    inputs: dict[str, Any],
    setting: dict[str, Any],
    factor: float = 1.0,
) -> Run:
    """Return the parts, and the gradients of factor · loss for each head."""
    parts = loss(**inputs, **setting)
    return list(parts), list(torch.autograd.grad(parts.loss * factor, heads_of(inputs)))


def assert_equal_runs(first: Run, second: Run) -> None:
    """Assert that two results of `run_form` are bit-equal."""
    for mine, theirs in zip(first, second, strict=True):
        assert len(mine) == len(theirs) and all(map(torch.equal, mine, theirs))


def run_exact(inputs: dict[str, Any], setting: dict[str, Any], factor: float = 1.0) -> Run:
    """Return what `run_form` does, computed in float64 from the dense target."""
    wide = dict(inputs)
    for key, value in inputs.items():
        if value is not None and value.is_floating_point():
            wide[key] = value.detach().double().requires_grad_("logits" in key)
    return run_form(lambda **given: dense_loss(given, setting), wide, {}, factor)


def assert_as_good_as_the_reference(
    inputs: dict[str, Any], setting: dict[str, Any], factor: float = 1.0
) -> None:
    """Assert that the kernel's error against float64 is at most twice the reference's, or a few ulp
    of the largest value or summand."""
    with interpreter.poisoned_memory():
        parts, gradients = run_form(distill, inputs, setting, factor)
    their_parts, their_gradients = run_form(distill_reference, inputs, setting, factor)
    exact_parts, exact_gradients = run_exact(inputs, setting, factor)
    summand = 0.0
    if setting["kind"] == "soft":
        # the soft part is tau² times a small difference of sums around one
        summand = setting["tau"] ** 2
        if setting["legacy"]:
            summand /= inputs["cls_logits"].shape[1]
    for mine, theirs, exact in zip(parts, their_parts, exact_parts, strict=True):
        _assert_as_good(mine, theirs, exact, summand)
    for mine, theirs, exact in zip(gradients, their_gradients, exact_gradients, strict=True):
        _assert_as_good(mine, theirs, exact, 0)


def _assert_as_good(
    mine: torch.Tensor, theirs: torch.Tensor, exact: torch.Tensor, summand: float
) -> None:
    assert mine.dtype == theirs.dtype and mine.shape == theirs.shape
    error = (mine.double() - exact).abs().max().item()
    allowed = (theirs.double() - exact).abs().max().item()
    size = exact.abs().max().item()
    assert error <= 2 * allowed + 8 * torch.finfo(torch.float32).eps * max(size, summand)


@kernel_only
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("classes", [2, 7, 1000, 2001])
def test_kernel_error_is_at_most_twice_that_of_the_reference(
    classes: int, name: str, dtype: torch.dtype
) -> None:
    # a power of two: bf16 gradients are rounded once before it and are not rounded again
    assert_as_good_as_the_reference(*make_form(name, classes, dtype), factor=4.0)


@kernel_only
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("classes", [1001, 2048, 21841])
def test_kernel_handles_many_classes(classes: int, name: str) -> None:
    dtype = torch.bfloat16 if classes == 2048 else torch.float32
    assert_as_good_as_the_reference(*make_form(name, classes, dtype, batch=2))


@kernel_only
@pytest.mark.parametrize("name", ["none-2", "soft"])
def test_kernel_sums_more_rows_than_one_block_holds(name: str) -> None:
    assert_as_good_as_the_reference(*make_form(name, 2, batch=262))


@kernel_only
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("classes", [5, 2100])
def test_kernel_handles_extreme_logits(classes: int, name: str) -> None:
    inputs, setting = make_form(name, classes)
    for key in ("cls_logits", "dist_logits", "teacher"):
        if inputs[key] is not None and inputs[key].is_floating_point():
            inputs[key] = (1e4 * inputs[key].detach().sign()).requires_grad_("logits" in key)
    assert_as_good_as_the_reference(inputs, setting)


@kernel_only
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.sampled_from(FORMS),
    st.integers(1, 4),
    st.integers(2, 600),
    st.floats(0, 0.9),
    st.floats(0, 1),
    st.floats(0.5, 20),
)
def test_kernel_handles_any_setting(
    name: str, pairs: int, classes: int, smoothing: float, alpha: float, tau: float
) -> None:
    inputs, setting = make_form(name, classes, batch=2 * pairs)
    setting |= {"smoothing": smoothing, "alpha": alpha, "tau": tau}
    assert_as_good_as_the_reference(inputs, setting)


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int32, torch.int16, torch.uint16, torch.uint8]
)
def test_class_ids_may_have_any_integer_dtype(dtype: torch.dtype) -> None:
    inputs, setting = make_form("hard-ids", 200)
    expected = distill(**inputs, **setting)
    inputs["teacher"] = inputs["teacher"].to(dtype)
    assert all(map(torch.equal, distill(**inputs, **setting), expected))


@pytest.mark.parametrize("classes", [40, 5000])
def test_first_of_several_equal_largest_logits_decides(classes: int) -> None:
    inputs, setting = make_form("hard-logits", classes, torch.bfloat16)
    first = torch.tensor([3, classes - 1, classes // 2, 0], device=DEVICE)
    teacher = torch.zeros(4, classes, device=DEVICE)
    teacher[torch.arange(classes, device=DEVICE) >= first[:, None]] = 2.5
    by_logits = distill(**inputs | {"teacher": teacher}, **setting)
    assert torch.equal(by_logits.loss, distill(**inputs | {"teacher": first}, **setting).loss)


def test_teacher_may_have_another_dtype() -> None:
    inputs, setting = make_form("soft", 70, torch.bfloat16)
    expected = distill(**inputs, **setting).loss
    inputs["teacher"] = inputs["teacher"].float()
    assert torch.equal(distill(**inputs, **setting).loss, expected)


def test_heads_may_be_strided() -> None:
    inputs, setting = make_form("soft", 30)
    strided = {}
    for key, value in inputs.items():
        every_second = torch.stack((value.detach(), value.detach()), -1)[..., 0]
        strided[key] = every_second.requires_grad_(value.requires_grad)
    assert not strided["cls_logits"].is_contiguous()
    assert_equal_runs(run_form(distill, strided, setting), run_form(distill, inputs, setting))


@pytest.mark.parametrize("name", FORMS)
def test_distill_is_deterministic_and_keeps_its_inputs(name: str) -> None:
    inputs, setting = make_form(name, 300, torch.bfloat16, batch=12)
    given = {key: value for key, value in inputs.items() if value is not None}
    before = {key: value.detach().clone() for key, value in given.items()}
    assert_equal_runs(run_form(distill, inputs, setting), run_form(distill, inputs, setting))
    assert all(torch.equal(value, given[key]) for key, value in before.items())


@pytest.mark.parametrize("name", FORMS)
def test_empty_batch_has_a_nan_mean(name: str) -> None:
    inputs, setting = make_form(name, 9)
    empty: dict[str, Any] = dict.fromkeys(inputs)
    for key, value in inputs.items():
        if value is not None:
            empty[key] = value.detach()[:0].requires_grad_("logits" in key)
    (loss, base, distilled), gradients = run_form(distill, empty, setting)
    assert loss.isnan() and base.isnan()
    assert distilled == 0 if setting["kind"] == "none" else distilled.isnan()
    assert all(gradient.shape == (0, 9) for gradient in gradients)


def test_only_the_loss_has_a_gradient() -> None:
    inputs, setting = make_form("hard-ids", 9)
    parts = distill(**inputs, **setting)
    assert [part.requires_grad for part in parts] == [True, False, False]
    one_frozen = inputs | {"cls_logits": inputs["cls_logits"].detach()}
    (expected,) = torch.autograd.grad(parts.loss, [inputs["dist_logits"]], retain_graph=True)
    (alone,) = torch.autograd.grad(distill(**one_frozen, **setting).loss, [inputs["dist_logits"]])
    (again,) = torch.autograd.grad(parts.loss, [inputs["dist_logits"]])
    assert torch.equal(alone, expected) and torch.equal(again, expected)
    with torch.no_grad():
        evaluated = distill(**inputs, **setting)
    assert not evaluated.loss.requires_grad and torch.equal(evaluated.loss, parts.loss)


def test_loss_scale_is_applied_before_fp16_rounding() -> None:
    inputs, setting = make_form("soft-legacy", 1000, torch.float16)
    gradients = run_form(distill, inputs, setting, factor=65536.0)[1]
    exact = run_exact(inputs, setting, factor=65536.0)[1]
    for mine, expected in zip(gradients, exact, strict=True):
        torch.testing.assert_close(mine.double(), expected, rtol=1e-3, atol=1e-5)
    assert exact[1].abs().max() / 65536 < torch.finfo(torch.float16).tiny


@pytest.mark.parametrize("name", FORMS)
def test_distill_compiles_without_a_graph_break(name: str) -> None:
    torch._dynamo.reset()
    inputs, setting = make_form(name, 20)

    def run(**given: Any) -> LossParts:
        return distill(**given, **setting)

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    mine = run_form(compiled, inputs, {})
    expected = run_form(distill, inputs, setting)
    for actual, wanted in zip(mine[0] + mine[1], expected[0] + expected[1], strict=True):
        torch.testing.assert_close(actual, wanted)


# the operator itself


def arguments_of(name: str, classes: int, with_grads: bool = True) -> tuple[Any, ...]:
    inputs, setting = make_form(name, classes)
    if name in ("hard-1", "soft-1"):
        inputs["dist_logits"] = inputs["cls_logits"]  # as `distill` passes them
    return (*inputs.values(), None, *setting.values(), with_grads)


@kernel_only
@pytest.mark.parametrize("name", FORMS)
def test_distill_passes_opcheck(name: str) -> None:
    torch.library.opcheck(torch.ops.fastdeit.distill.default, arguments_of(name, 6))


@kernel_only
def test_distill_bwd_passes_opcheck() -> None:
    grads = torch.randn(2, 4, 6, device=DEVICE)
    arguments = (grads, torch.tensor(0.5, device=DEVICE), torch.bfloat16)
    torch.library.opcheck(torch.ops.fastdeit.distill_bwd.default, arguments)
    scaled = distill_bwd_triton(grads, torch.tensor(0.3, device=DEVICE), torch.bfloat16)
    assert torch.equal(scaled, (grads * 0.3).bfloat16())


@kernel_only
def test_gradients_are_written_only_when_needed() -> None:
    with_grads = distill_triton(*arguments_of("soft", 6, True))
    without = distill_triton(*arguments_of("soft", 6, False))
    assert with_grads[3].shape == (2, 4, 6) and without[3].numel() == 0
    assert all(torch.equal(a, b) for a, b in zip(with_grads[:3], without[:3], strict=True))


@kernel_only
def test_counter_is_zero_after_every_launch() -> None:
    counter = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    for name in ("none-1", "soft", "none-2"):
        arguments = list(arguments_of(name, 6))
        expected = distill_triton(*arguments)
        arguments[5] = counter
        assert torch.equal(distill_triton(*arguments)[0], expected[0]) and counter.item() == 0


@kernel_only
@pytest.mark.parametrize("wrong", [-1, 9, 2**32])
def test_label_out_of_range_gives_nan(wrong: int) -> None:
    inputs, setting = make_form("hard-ids", 9)
    inputs["labels"][2] = wrong
    parts = distill(**inputs, **setting)
    assert parts.loss.isnan() and parts.base.isnan() and parts.distill.isfinite()


@kernel_only
@pytest.mark.gpu
@pytest.mark.parametrize("name", FORMS)
def test_loss_on_a_gpu_is_one_launch_without_a_sync(name: str) -> None:
    inputs, setting = make_form(name, 1000, torch.bfloat16, batch=256)
    expected = run_form(distill, inputs, setting)
    torch.cuda.set_sync_debug_mode("error")
    try:
        actual = run_form(distill, inputs, setting)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_equal_runs(actual, expected)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        distill(**inputs, **setting)
        torch.cuda.synchronize()
    gpu = torch.autograd.DeviceType.CUDA
    launched = [event.name for event in profile.events() if event.device_type == gpu]
    assert len(launched) == 1 and "_distill_fwd_kernel" in launched[0]


@kernel_only
@pytest.mark.gpu
@pytest.mark.parametrize("name", FORMS)
def test_loss_runs_in_a_cuda_graph_and_on_other_streams(name: str) -> None:
    inputs, setting = make_form(name, 1000, torch.bfloat16, batch=512)
    expected = distill(**inputs, **setting).loss.detach()
    streams = [torch.cuda.Stream() for _ in range(3)]
    losses = []
    torch.cuda.synchronize()
    for _ in range(20):
        for stream in streams:
            with torch.cuda.stream(stream):
                losses.append(distill(**inputs, **setting).loss.detach())
    torch.cuda.synchronize()
    assert all(torch.equal(loss, expected) for loss in losses)
    device = torch.device("cuda", torch.cuda.current_device())
    counters = [counter_of(device)]
    for stream in streams:
        with torch.cuda.stream(stream):
            counters.append(counter_of(device))
    assert len({counter.data_ptr() for counter in counters if counter is not None}) == 4
    assert all(counter is not None and counter.item() == 0 for counter in counters)

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = run_form(distill, inputs, setting)
    for _ in range(3):
        graph.replay()
    assert torch.equal(replayed[0][0], expected)
