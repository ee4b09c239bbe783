"""`distill` in both forms against the loss of 2012.12877 (equations 2 and 3), written out class by
class in float64.

Every test runs for the reference and for the kernel; those named after the kernel compare it to
dense targets in float64.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fastdeit.kernels import backend
from fastdeit.kernels.distill import LossParts, distill, distill_reference, mixed_cross_entropy
from fastdeit.kernels.distill_fused import counter_of, distill_bwd_triton, distill_triton
from tests.kernels import interpreter
from tests.kernels.interpreter import DEVICE
from tests.kernels.properties import HealthCheck, Phase, given, settings, st

interpreter.correct()
BATCH, CLASSES = 6, 11
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FORMS = ["none-1", "none-2", "hard-ids", "hard-logits", "soft", "soft-legacy"]


@pytest.fixture(params=["reference", "triton"], autouse=True)
def form(request: pytest.FixtureRequest) -> Iterator[None]:
    with backend.use_backend(request.param):
        yield


def softmax(logits: list[float], tau: float = 1.0) -> list[float]:
    top = max(logits)
    powers = [math.exp((value - top) / tau) for value in logits]
    return [power / sum(powers) for power in powers]


def mixed_target(
    labels: list[int], lam: list[float], row: int, classes: int, smoothing: float
) -> list[float]:
    off, on = smoothing / classes, 1 - smoothing + smoothing / classes
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
    for student_row, teacher_row in zip(
        logits.double().tolist(), teacher.double().tolist(), strict=True
    ):
        if kind == "hard":
            total -= math.log(softmax(student_row)[teacher_row.index(max(teacher_row))])
        else:
            pairs = zip(softmax(teacher_row, tau), softmax(student_row, tau), strict=True)
            total += tau**2 * sum(p * math.log(p / q) for p, q in pairs)
    return total / len(logits) / (logits.shape[1] if legacy and kind == "soft" else 1)


def make_inputs(classes: int = CLASSES, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    drawn = torch.Generator().manual_seed(classes)
    cls_logits, dist_logits, teacher = 3 * torch.randn(3, BATCH, classes, generator=drawn)
    labels = torch.randint(classes, (BATCH,), generator=drawn)
    labels[3] = labels[2]  # a pair of one class
    lam = torch.tensor([0.3, 0.3, 0.6, 0.6, 0.0, 1.0])
    tensors = {
        "cls_logits": cls_logits.to(dtype),
        "dist_logits": dist_logits.to(dtype),
        "labels": labels,
        "lam": lam,
    }
    return {name: tensor.to(DEVICE) for name, tensor in {**tensors, "teacher": teacher}.items()}


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
        torch.testing.assert_close(
            distill(**half, **setting).loss, distill(**wide, **setting).loss, rtol=1e-6, atol=0
        )


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
    assert parts.loss.item() == pytest.approx(
        base_by_hand(logits, inputs["labels"], inputs["lam"], 0.1), rel=1e-5
    )
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
        cls_up, cls_down = (heads[0].detach().double() + sign * nudge for sign in (1, -1))
        dist_up, dist_down = (heads[1].detach().double() + sign * nudge for sign in (1, -1))
        base = base_by_hand(cls_up, labels, lam, 0.1) - base_by_hand(cls_down, labels, lam, 0.1)
        distilled = distilled_by_hand(dist_up, teacher, kind, 2.0, False)
        distilled -= distilled_by_hand(dist_down, teacher, kind, 2.0, False)
        assert gradients[0][row, column].item() == pytest.approx(0.6 * base / (2 * step), abs=1e-6)
        assert gradients[1][row, column].item() == pytest.approx(
            0.4 * distilled / (2 * step), abs=1e-6
        )


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
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(
        mixed_cross_entropy(logits, labels, torch.ones_like(inputs["lam"]), 0.1), expected
    )


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({}, "firm", "choose from"),
        ({}, "none", "no teacher"),
        ({"teacher": None}, "hard", "teacher's output"),
        ({"dist_logits": None}, "soft", "two heads"),
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


# the kernel, against dense targets in float64

once = pytest.mark.parametrize("form", ["triton"], indirect=True)


def make_form(
    name: str, classes: int, dtype: torch.dtype = torch.float32, batch: int = 4
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs and setting of one of `FORMS`; lam goes through both ends, one pair is of one class,
    the last class is missing."""
    kind, variant, *_ = *name.split("-"), ""
    drawn = torch.Generator().manual_seed(classes + batch)
    cls_logits, dist_logits, teacher = 3 * torch.randn(3, batch, classes, generator=drawn)
    labels = torch.randint(classes - 1, (batch,), generator=drawn)
    labels[1] = labels[0]
    lam = torch.rand(batch, generator=drawn)
    lam[2::4], lam[3::4] = 0.0, 1.0
    inputs: dict[str, Any] = {
        "cls_logits": cls_logits.to(dtype),
        "dist_logits": None if variant == "1" else dist_logits.to(dtype),
        "labels": labels,
        "lam": lam,
        "teacher": None
        if kind == "none"
        else teacher.argmax(-1).to(torch.uint16)
        if variant == "ids"
        else teacher.to(dtype),
    }
    inputs = {key: value if value is None else value.to(DEVICE) for key, value in inputs.items()}
    for key in ("cls_logits", "dist_logits"):
        inputs[key] = inputs[key] if inputs[key] is None else inputs[key].requires_grad_()
    return inputs, {
        "smoothing": 0.1,
        "kind": kind,
        "alpha": 0.3,
        "tau": 3.0,
        "legacy": variant == "legacy",
    }


def heads_of(inputs: dict[str, Any]) -> list[torch.Tensor]:
    return [inputs[key] for key in ("cls_logits", "dist_logits") if inputs[key] is not None]


def dense_loss(inputs: dict[str, Any], setting: dict[str, Any]) -> LossParts:
    """The loss by torch's own functions from the dense target, all in the dtype of the logits."""
    cls_logits, dist_logits, teacher = (
        inputs[key] for key in ("cls_logits", "dist_logits", "teacher")
    )
    classes, eps = cls_logits.shape[1], setting["smoothing"]
    one_hot = F.one_hot(inputs["labels"], classes).to(cls_logits.dtype)
    partner = one_hot[[row ^ 1 for row in range(len(one_hot))]]
    lam = inputs["lam"].to(cls_logits.dtype)[:, None]
    target = (1 - eps) * (lam * one_hot + (1 - lam) * partner) + eps / classes
    if setting["kind"] == "none":
        logits = cls_logits if dist_logits is None else (cls_logits + dist_logits) / 2
        base = F.cross_entropy(logits, target)
        return LossParts(base, base, torch.zeros_like(base))
    base = F.cross_entropy(cls_logits, target)
    if setting["kind"] == "hard":
        decision = teacher.long() if teacher.ndim == 1 else teacher.argmax(-1)
        distilled = F.cross_entropy(dist_logits, decision)
    else:
        logp, teacher_logp = (
            F.log_softmax(logits / setting["tau"], -1) for logits in (dist_logits, teacher)
        )
        distilled = (
            F.kl_div(logp, teacher_logp, reduction="batchmean", log_target=True)
            * setting["tau"] ** 2
        )
        distilled = distilled / classes if setting["legacy"] else distilled
    return LossParts((1 - setting["alpha"]) * base + setting["alpha"] * distilled, base, distilled)


def run_form(
    loss: Callable[..., LossParts],
    inputs: dict[str, Any],
    setting: dict[str, Any],
    factor: float = 1.0,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The parts, and the gradients of factor · loss by head."""
    parts = loss(**inputs, **setting)
    return list(parts), list(torch.autograd.grad(parts.loss * factor, heads_of(inputs)))


def run_exact(
    inputs: dict[str, Any], setting: dict[str, Any], factor: float = 1.0
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    wide = {
        key: value.detach().double().requires_grad_("dist" in key or "cls" in key)
        if value is not None and value.is_floating_point()
        else value
        for key, value in inputs.items()
    }
    return run_form(lambda **given: dense_loss(given, setting), wide, {}, factor)


def assert_as_good_as_the_reference(
    inputs: dict[str, Any], setting: dict[str, Any], factor: float = 1.0
) -> None:
    """The kernel's error against float64 is at most twice the reference's, or a few ulp of the
    largest value or summand."""
    with interpreter.poisoned_memory():
        parts, gradients = run_form(distill, inputs, setting, factor)
    their_parts, their_gradients = run_form(distill_reference, inputs, setting, factor)
    exact_parts, exact_gradients = run_exact(inputs, setting, factor)
    # the soft part is tau² times a small difference of sums around one
    summand = (
        setting["tau"] ** 2 / (inputs["cls_logits"].shape[1] if setting["legacy"] else 1)
        if setting["kind"] == "soft"
        else 0
    )
    for mine, theirs, exact in zip(parts, their_parts, exact_parts, strict=True):
        _assert_as_good(mine, theirs, exact, summand)
    for mine, theirs, exact in zip(gradients, their_gradients, exact_gradients, strict=True):
        _assert_as_good(mine, theirs, exact, 0)


def _assert_as_good(
    mine: torch.Tensor, theirs: torch.Tensor, exact: torch.Tensor, summand: float
) -> None:
    assert mine.dtype == theirs.dtype and mine.shape == theirs.shape
    error, allowed, size = (
        (x.double() - exact).abs().max().item() for x in (mine, theirs, torch.zeros_like(exact))
    )
    assert error <= 2 * allowed + 8 * torch.finfo(torch.float32).eps * max(size, summand)


@once
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("classes", [2, 7, 1000, 2001])
def test_kernel_error_is_at_most_twice_that_of_the_reference(
    classes: int, name: str, dtype: torch.dtype
) -> None:
    # a power of two: bf16 gradients are rounded once before it and are not rounded again
    assert_as_good_as_the_reference(*make_form(name, classes, dtype), factor=4.0)


@once
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("classes", [1001, 2048, 21841])
def test_kernel_handles_many_classes(classes: int, name: str) -> None:
    assert_as_good_as_the_reference(
        *make_form(name, classes, torch.bfloat16 if classes == 2048 else torch.float32, batch=2)
    )


@once
@pytest.mark.parametrize("name", ["none-2", "soft"])
def test_kernel_sums_more_rows_than_one_block_holds(name: str) -> None:
    assert_as_good_as_the_reference(*make_form(name, 2, batch=262))


@once
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("classes", [5, 2100])
def test_kernel_handles_extreme_logits(classes: int, name: str) -> None:
    inputs, setting = make_form(name, classes)
    for key in ("cls_logits", "dist_logits", "teacher"):
        if inputs[key] is not None and inputs[key].is_floating_point():
            inputs[key] = (1e4 * inputs[key].detach().sign()).requires_grad_("logits" in key)
    assert_as_good_as_the_reference(inputs, setting)


@once
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
    assert_as_good_as_the_reference(
        inputs, setting | {"smoothing": smoothing, "alpha": alpha, "tau": tau}
    )


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int32, torch.int16, torch.uint16, torch.uint8]
)
def test_class_ids_may_have_any_integer_dtype(dtype: torch.dtype) -> None:
    inputs, setting = make_form("hard-ids", 200)
    expected = distill(**inputs, **setting)
    inputs["teacher"] = inputs["teacher"].to(dtype)
    assert all(
        torch.equal(a, b) for a, b in zip(distill(**inputs, **setting), expected, strict=True)
    )


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
    wide = inputs["teacher"].float()
    assert torch.equal(
        distill(**inputs, **setting).loss, distill(**inputs | {"teacher": wide}, **setting).loss
    )


def test_heads_may_be_strided() -> None:
    inputs, setting = make_form("soft", 30)
    strided = {
        key: torch.stack((value.detach(), value.detach()), -1)[..., 0].requires_grad_(
            value.requires_grad
        )
        for key, value in inputs.items()
    }
    assert not strided["cls_logits"].is_contiguous()
    for mine, expected in zip(
        run_form(distill, strided, setting), run_form(distill, inputs, setting), strict=True
    ):
        assert all(torch.equal(a, b) for a, b in zip(mine, expected, strict=True))


@pytest.mark.parametrize("name", FORMS)
def test_distill_is_deterministic_and_keeps_its_inputs(name: str) -> None:
    inputs, setting = make_form(name, 300, torch.bfloat16, batch=12)
    before = {
        key: value if value is None else value.detach().clone() for key, value in inputs.items()
    }
    first, again = (run_form(distill, inputs, setting) for _ in range(2))
    assert all(
        torch.equal(a, b)
        for mine, theirs in zip(first, again, strict=True)
        for a, b in zip(mine, theirs, strict=True)
    )
    assert all(value is None or torch.equal(value, inputs[key]) for key, value in before.items())


@pytest.mark.parametrize("name", FORMS)
def test_empty_batch_has_a_nan_mean(name: str) -> None:
    inputs, setting = make_form(name, 9)
    empty = {
        key: value if value is None else value.detach()[:0].requires_grad_("logits" in key)
        for key, value in inputs.items()
    }
    parts, gradients = run_form(distill, empty, setting)
    assert (
        parts[0].isnan()
        and parts[1].isnan()
        and all(gradient.shape == (0, 9) for gradient in gradients)
    )
    assert parts[2].isnan() if setting["kind"] != "none" else parts[2] == 0


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
    compiled = torch.compile(
        lambda **given: distill(**given, **setting), backend="aot_eager", fullgraph=True
    )
    mine, expected = run_form(compiled, inputs, {}), run_form(distill, inputs, setting)
    for actual, wanted in zip(mine[0] + mine[1], expected[0] + expected[1], strict=True):
        torch.testing.assert_close(actual, wanted)


# the operator itself


def arguments_of(name: str, classes: int, with_grads: bool = True) -> tuple[Any, ...]:
    inputs, setting = make_form(name, classes)
    return (*inputs.values(), None, *setting.values(), with_grads)


@once
@pytest.mark.parametrize("name", FORMS)
def test_distill_passes_opcheck(name: str) -> None:
    torch.library.opcheck(torch.ops.fastdeit.distill.default, arguments_of(name, 6))


@once
def test_distill_bwd_passes_opcheck() -> None:
    grads = torch.randn(2, 4, 6, device=DEVICE)
    torch.library.opcheck(
        torch.ops.fastdeit.distill_bwd.default,
        (grads, torch.tensor(0.5, device=DEVICE), torch.bfloat16),
    )
    scaled = distill_bwd_triton(grads, torch.tensor(0.3, device=DEVICE), torch.bfloat16)
    assert torch.equal(scaled, (grads * 0.3).bfloat16())


@once
def test_gradients_are_written_only_when_needed() -> None:
    with_grads, without = (
        distill_triton(*arguments_of("soft", 6, asked)) for asked in (True, False)
    )
    assert with_grads[3].shape == (2, 4, 6) and without[3].numel() == 0
    assert all(torch.equal(a, b) for a, b in zip(with_grads[:3], without[:3], strict=True))


@once
def test_counter_is_zero_after_every_launch() -> None:
    counter = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    for name in ("none-1", "soft", "none-2"):
        arguments = list(arguments_of(name, 6))
        expected = distill_triton(*arguments)
        arguments[5] = counter
        assert torch.equal(distill_triton(*arguments)[0], expected[0]) and counter.item() == 0


@once
@pytest.mark.parametrize("wrong", [-1, 9, 2**32])
def test_label_out_of_range_gives_nan(wrong: int) -> None:
    inputs, setting = make_form("hard-ids", 9)
    inputs["labels"][2] = wrong
    parts = distill(**inputs, **setting)
    assert parts.loss.isnan() and parts.base.isnan() and parts.distill.isfinite()


@once
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
    assert all(
        torch.equal(a, b)
        for mine, theirs in zip(actual, expected, strict=True)
        for a, b in zip(mine, theirs, strict=True)
    )
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        distill(**inputs, **setting)
        torch.cuda.synchronize()
    launched = [
        event.name
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    assert len(launched) == 1 and "_distill_fwd_kernel" in launched[0]


@once
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
    counters = [counter_of(torch.device("cuda", torch.cuda.current_device()))]
    for stream in streams:
        with torch.cuda.stream(stream):
            counters.append(counter_of(torch.device("cuda", torch.cuda.current_device())))
    assert len({counter.data_ptr() for counter in counters if counter is not None}) == 4
    assert all(counter is not None and counter.item() == 0 for counter in counters)

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = run_form(distill, inputs, setting)
    for _ in range(3):
        graph.replay()
    assert torch.equal(replayed[0][0], expected)
