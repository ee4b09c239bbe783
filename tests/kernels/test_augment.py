"""`augment`: the reference against timm and PIL, the kernels against both, bit for bit.

.venv/bin/python -m pytest tests/kernels/test_augment.py, about 30 s
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from fastdeit.kernels import augment as module
from fastdeit.kernels.augment import augment, augment_reference, augment_triton, pack_args
from fastdeit.kernels.augment_kernels import blur, tables
from fastdeit.kernels.augment_kernels import ops as kernel_ops
from fastdeit.plan.operations import OPERATIONS, OPS
from fastdeit.plan.plan import Plan
from fastdeit.plan.spec import PlanSpec
from tests.kernels import interpreter
from tests.kernels.interpreter import DEVICE, INTERPRETED
from tests.kernels.properties import given, settings, st
from tests.support.images import write_shapes
from tests.support.timm_ops import FILL, arguments_of, picture, timm_op

KINDS = ("levels", "statistics", "image")
SHAPES = [(37, 53), (1, 1), (3, 3), (2, 9), (9, 2)]
SLOTS = len(OPS) + 1
"""Each operation, and none."""
ROUND = (0.0, 0.5, -1.0, 2.5, 45.0, 90.0, -90.0, 180.0, 360.0, 1e-9)
SPECS = {
    "deit": PlanSpec(input_size=32, repeats=1, ra_prob=0.9),
    "deit3": PlanSpec(
        input_size=32,
        repeats=1,
        ra_layers=0,
        three_augment=True,
        simple_crop=True,
        color_jitter=0.3,
    ),
    "many layers": PlanSpec(
        input_size=32, repeats=1, ra_layers=5, ra_prob=1.0, ra_std=float("inf")
    ),
}
RUNS = [augment_reference, augment_triton]
Operations = tuple[torch.Tensor, torch.Tensor]
"""ops, int32 (B, L), and timm's arguments, float64 (B, L), both on the CPU."""


@pytest.fixture(autouse=True)
def large_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpret with large blocks, as each block costs the same time, whatever its size.

    A test with "configured" in its name keeps the blocks of the table.
    """
    if not INTERPRETED or "configured" in request.node.name:
        return
    find_launch = module.find_launch

    def change(target: ModuleType, changes: dict[str, dict[str, int]]) -> None:
        def find(op: str, *key: Any, **sizes: Any) -> dict[str, int]:
            return find_launch(op, *key, **sizes) | changes.get(op, {})

        monkeypatch.setattr(target, "find_launch", find)

    change(module, {"augment": {"BLOCK_PART": 2048}})
    change(blur, {"augment_blur": {"BLOCK": 8192}})
    # several chunks an image
    change(tables, {"augment_statistics": {"BLOCK": 512, "STEPS": 2}})


def pictures(count: int, height: int, width: int) -> torch.Tensor:
    """Return uint8 (count, H, W, 3), in turn noise, a smooth image, few levels, one level."""
    images = np.stack([picture(seed, height, width) for seed in range(count)])
    return torch.from_numpy(images).to(DEVICE)


def one_layer(names: Sequence[str], args: Sequence[float]) -> Operations:
    """Return one operation an image, "" for none."""
    ops = torch.tensor([OPS.index(name) if name else -1 for name in names], dtype=torch.int32)
    return ops[:, None], torch.tensor(args, dtype=torch.float64)[:, None]


def planned(spec: PlanSpec, count: int) -> Operations:
    """Return the planned operations of the first samples of epoch 0."""
    drawn = Plan(spec, np.full((2 * count, 2), 64)).draw(0, np.arange(count))
    return torch.from_numpy(drawn.ops), torch.from_numpy(drawn.op_args)


def mixed(batch: int, layers: int) -> Operations:
    """Return different operations for each image; SLOTS of them (batch · layers) contain every
    one."""
    order = np.random.default_rng(0).permutation(SLOTS) - 1
    ops = np.resize(order, (layers, batch)).T
    args = np.zeros((batch, layers))
    for slot in np.ndindex(batch, layers):
        if ops[slot] >= 0:
            args[slot] = arguments_of(int(ops[slot]), 8)[sum(slot) % 8]
    return torch.from_numpy(ops.astype(np.int32)), torch.from_numpy(args)


def packed(operations: Operations) -> tuple[torch.Tensor, torch.Tensor]:
    ops, args = operations
    return ops.to(DEVICE), pack_args(ops, args).to(DEVICE)


def by_timm(images: torch.Tensor, operations: Operations) -> torch.Tensor:
    """Apply timm's operations image by image."""
    out = images.cpu().numpy().copy()
    for image, ops, args in zip(out, *(tensor.tolist() for tensor in operations), strict=True):
        for op, arg in zip(ops, args, strict=True):
            if op >= 0:
                image[:] = timm_op(image, OPS[op], arg)
    return torch.from_numpy(out).to(images.device)


def equal(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_operation_numbers_equal_those_of_the_plan() -> None:
    assert kernel_ops.OPS == OPS
    kinds = {kind: {row.name for row in OPERATIONS if row.kind == kind} for kind in KINDS}
    assert set(kernel_ops.STATISTICS) == kinds["statistics"]
    assert set(kernel_ops.TABLES) == kinds["statistics"] | kinds["levels"]
    assert set(kernel_ops.WARPS) == {row.name for row in OPERATIONS if row.native == "warp"}
    numbers = {
        name: value.value
        for name, value in vars(kernel_ops).items()
        if hasattr(value, "value") and name.isupper()
    }
    assert numbers.pop("COUNT") == len(OPS) and sorted(numbers.values()) == list(range(len(OPS)))
    for name, number in numbers.items():
        spelled = {"BLUR": "gaussianblur"}.get(name, name.replace("_", "").lower())
        assert OPS[number].removesuffix("Increasing").removesuffix("Rel").lower() == spelled


@pytest.mark.parametrize("name", OPS)
def test_reference_equals_timm(name: str) -> None:
    args = [
        *arguments_of(OPS.index(name), 16).tolist(),
        *(ROUND if name in kernel_ops.WARPS else ()),
    ]
    operations = one_layer([name] * len(args), args)
    for shape in (*SHAPES, (64, 64)):
        images = pictures(len(args), *shape)
        equal(augment_reference(images, *packed(operations)), by_timm(images, operations))


@pytest.mark.parametrize("name", OPS)
def test_kernel_equals_timm(name: str) -> None:
    args = [
        *arguments_of(OPS.index(name), 5).tolist(),
        *((90.0, -1.0) if name in kernel_ops.WARPS else ()),
    ]
    operations = one_layer([name] * len(args), args)
    for shape in SHAPES:
        images = pictures(len(args), *shape)
        with interpreter.poisoned_memory():
            out = augment_triton(images, *packed(operations), layer_ops=[[name]])
        equal(out, by_timm(images, operations))


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", ["Color", "Contrast", "Brightness", "Sharpness"])
def test_enhancement_at_any_factor_equals_pil(name: str, run: Any) -> None:
    name = f"{name}Increasing"
    images = pictures(5, 20, 15)
    operations = one_layer([name] * 5, [-0.5, 0.0, 1e-3, 1.0, 3.0])
    equal(run(images, *packed(operations), FILL, [[name]]), by_timm(images, operations))


def test_autocontrast_between_any_extremes_equals_pil() -> None:
    ends = np.sort(np.random.default_rng(0).integers(0, 256, (300, 2)), 1)
    ramps = np.clip(np.arange(256), ends[:, :1], ends[:, 1:]).astype(np.uint8)
    images = np.repeat(ramps[:, None, :, None], 3, 3)
    expected = [np.asarray(ImageOps.autocontrast(Image.fromarray(image))) for image in images]
    ops, args = packed(one_layer(["AutoContrast"] * 300, [0.0] * 300))
    out = augment_reference(torch.from_numpy(images).to(DEVICE), ops, args)
    equal(out.cpu(), torch.from_numpy(np.stack(expected)))


@pytest.mark.parametrize("run", RUNS)
def test_sharpness_of_every_window_sum_equals_pil(run: Any) -> None:
    """Each 3 x 3 tile has another one of the 3316 possible sums of the window."""
    rest = np.arange(13 * 255 + 1)
    tiles = np.zeros((3, 13 * 255 + 1, 3), np.uint8)
    for y, x in [(1, 1), (0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1), (2, 2)]:
        weight = 5 if (y, x) == (1, 1) else 1
        level = np.minimum(rest // weight, 255)
        tiles[y, :, x] = level
        rest = rest - weight * level
    assert not rest.any()
    images = torch.from_numpy(np.repeat(tiles.reshape(1, 3, -1, 1), 3, axis=3)).to(DEVICE)
    operations = one_layer(["SharpnessIncreasing"], [1.7])
    out = run(images, *packed(operations), FILL, [["SharpnessIncreasing"]])
    equal(out, by_timm(images, operations))


@pytest.mark.parametrize("run", RUNS)
def test_blur_of_any_radius_equals_pil(run: Any) -> None:
    images = pictures(7, 20, 13)
    operations = one_layer(["GaussianBlur"] * 7, [0.0, 1e-6, 1.2, 2.0, 5.0, 9.9, 40.0])
    equal(run(images, *packed(operations), FILL, [["GaussianBlur"]]), by_timm(images, operations))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_planned_chains_equal_timm(spec: PlanSpec) -> None:
    images = pictures(200, 32, 32)
    operations = planned(spec, 200)
    ops, args = packed(operations)
    expected = by_timm(images, operations)
    equal(augment_reference(images, ops, args, FILL, spec.layer_ops), expected)
    few = slice(0, 24) if INTERPRETED else slice(None)
    with interpreter.poisoned_memory():
        out = augment_triton(images[few], ops[few], args[few], FILL, spec.layer_ops)
    equal(out, expected[few])
    assert (ops[few] >= 0).all(1).any() and not torch.equal(out, images[few])


def test_batch_of_all_operations_equals_timm() -> None:
    images = pictures(SLOTS, 33, 45)
    operations = mixed(SLOTS, 1)
    assert set(operations[0].flatten().tolist()) == {-1, *range(len(OPS))}
    with interpreter.poisoned_memory():
        out = augment_triton(images, *packed(operations))
    equal(out, by_timm(images, operations))


def test_batch_in_the_configured_blocks_equals_timm() -> None:
    """The image has several blocks and parts, of sizes that do not divide it."""
    args = {
        "Rotate": 30.0,
        "TranslateYRel": 0.3,
        "SharpnessIncreasing": 1.5,
        "ColorIncreasing": 0.4,
        "Equalize": 0.0,
        "GaussianBlur": 1.7,
        "": 0.0,
    }
    images = pictures(7, 45, 46)
    operations = one_layer([*args], [*args.values()])
    with interpreter.poisoned_memory():
        out = augment_triton(images, *packed(operations))
    equal(out, by_timm(images, operations))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    batch=st.integers(1, 3),
    layers=st.integers(1, 2),
)
def test_kernels_at_any_shape_equal_timm(height: int, width: int, batch: int, layers: int) -> None:
    images = pictures(batch, height, width)
    operations = mixed(batch, layers)
    equal(augment_triton(images, *packed(operations)), by_timm(images, operations))


def test_fill_colour_is_used() -> None:
    images = pictures(2, 20, 30)
    ops, args = packed(one_layer(["Rotate", "TranslateXRel"], [30.0, 0.4]))
    out = augment_triton(images, ops, args, (255, 0, 7))
    equal(out, augment_reference(images, ops, args, (255, 0, 7)))
    assert out[0, 0, 0].tolist() == out[1, 0, -1].tolist() == [255, 0, 7]


@pytest.mark.parametrize("run", RUNS)
def test_operation_that_no_layer_names_changes_nothing(run: Any) -> None:
    images = pictures(5, 8, 8)
    numbers = [-1, -7, len(OPS), 99, OPS.index("Invert")]
    ops = torch.tensor(numbers, dtype=torch.int32, device=DEVICE)[:, None]
    args = torch.ones(5, 1, 2, dtype=torch.float64, device=DEVICE)
    equal(run(images, ops, args)[:4], images[:4])
    equal(run(images, ops, args)[4], 255 - images[4])
    equal(run(images, ops, args, FILL, [["Rotate", "AutoContrast", "GaussianBlur"]]), images)


@pytest.mark.parametrize("shape", [(0, 8, 8), (3, 0, 8), (3, 8, 8)])
@pytest.mark.parametrize("layers", [0, 2])
def test_batch_without_operations_is_copied(shape: tuple[int, int, int], layers: int) -> None:
    images = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, device=DEVICE)
    ops = torch.full((shape[0], layers), -1, dtype=torch.int32, device=DEVICE)
    args = torch.zeros(shape[0], layers, 2, dtype=torch.float64, device=DEVICE)
    for run in (augment, *RUNS):
        out = run(images, ops, args)
        equal(out, images)
        assert not out.numel() or out.data_ptr() != images.data_ptr()


def test_augment_is_deterministic_and_keeps_its_inputs() -> None:
    inputs = (pictures(6, 16, 16), *packed(mixed(6, 3)))
    before = [tensor.clone() for tensor in inputs]
    assert torch.equal(augment_triton(*inputs), augment_triton(*inputs))
    augment_reference(*inputs)
    assert all(map(torch.equal, inputs, before))


def test_comparison_detects_one_level() -> None:
    images = pictures(1, 24, 24)
    ops, args = packed(one_layer(["Rotate"], [27.0]))
    out = augment_triton(images, ops, args)
    assert not torch.equal(augment_triton(images, ops, args + 1e-4), out)
    images[0, 12, 12, 1] ^= 8
    assert not torch.equal(augment_triton(images, ops, args), out)


@pytest.mark.parametrize("layer_ops", [None, SPECS["deit"].layer_ops], ids=["any", "deit"])
def test_augment_passes_opcheck(layer_ops: Any) -> None:
    allowed = [kernel_ops.bits_of(names) for names in layer_ops or [OPS] * 2]
    arguments = (pictures(3, 8, 8), *packed(mixed(3, 2)), list(FILL), allowed)
    torch.library.opcheck(torch.ops.fastdeit.augment.default, arguments)


def test_augment_accepts_strided_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(4, 8, 8)
    operations = mixed(4, 2)
    expected = by_timm(images, operations)
    ops, args = packed(operations)
    wide = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    for fused in (False, True):
        monkeypatch.setattr(module, "is_fused", lambda _, fused=fused: fused)
        equal(augment(wide, ops.T.contiguous().T, args), expected)


def test_augment_compiles_without_a_graph_break(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_fused", lambda _: True)
    images = pictures(2, 8, 8)
    operations = mixed(2, 2)
    compiled = torch.compile(
        lambda *inputs: augment(*inputs).float() / 255, backend="aot_eager", fullgraph=True
    )
    equal(compiled(images, *packed(operations)), by_timm(images, operations).float() / 255)


def test_packed_arguments_equal_those_of_the_exact_backend() -> None:
    pytest.importorskip("nvidia.dali")
    pytest.importorskip("numba")
    from fastdeit.data.augment.exact import pack_exact
    from fastdeit.data.augment.sample import ARGS, LAYERS

    for spec in SPECS.values():
        drawn = Plan(spec, np.full((400, 2), 64)).draw(0, np.arange(200))
        ints, floats = pack_exact(drawn, spec, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        ops, args = planned(spec, 200)
        equal(ops, torch.from_numpy(ints[:, LAYERS:]))
        equal(pack_args(ops, args).flatten(1), torch.from_numpy(floats[:, ARGS:]))
        assert tuple(ints[0, LAYERS - 3 : LAYERS]) == module.FILL == FILL


def test_augment_of_dali_batches_equals_the_exact_operator(tmp_path: Path) -> None:
    """DALI decodes and resizes; its batch is augmented without a copy; the pixels are those of the
    exact operator."""
    pytest.importorskip("nvidia.dali")
    pytest.importorskip("numba")
    from nvidia.dali import fn, pipeline_def, types

    from fastdeit.data.augment.sample import operate

    files = sorted(map(str, write_shapes(tmp_path).rglob("*.jpg")))[:12]

    @pipeline_def(batch_size=12, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def graph() -> Any:
        encoded, _ = fn.readers.file(files=files)
        return fn.resize(fn.decoders.image(encoded), size=[32, 32], interp_type=types.INTERP_CUBIC)

    pipeline = graph()
    pipeline.build()
    images = torch.from_dlpack(pipeline.run()[0].as_tensor()).to(DEVICE)
    assert images.shape == (12, 32, 32, 3) and images.dtype == torch.uint8
    assert images.is_contiguous()
    spec = SPECS["deit"]
    ops, args = packed(planned(spec, 12))
    expected = images.cpu().permute(0, 3, 1, 2).contiguous().numpy()
    samples = zip(expected, ops.cpu().numpy(), args.cpu().numpy(), strict=True)
    for planes, numbers, values in samples:
        operate(planes, numbers, values.reshape(-1), np.array(FILL, np.int32))
    for run in (augment, augment_triton):
        out = run(images, ops, args, FILL, spec.layer_ops)
        equal(out.permute(0, 3, 1, 2).cpu(), torch.from_numpy(expected))


def test_kernels_contain_no_fused_multiply_add() -> None:
    """A fused multiply-add rounds once instead of twice: on a GPU pixels would differ from those of
    PIL, which the interpreter cannot show."""
    code = """
from benchmarks.bench_augment import LAUNCHES
from benchmarks.measuring.offline import compiled_only
with compiled_only(90) as found:
    LAUNCHES[0].run()
kernels = {kernel.metadata.name: kernel for kernel, _ in found}
assert len(kernels) == 4, kernels
for kernel in kernels.values():
    assert not kernel.metadata.enable_fp_fusion, kernel.metadata.name
    assert "fma.rn" not in kernel.asm["ptx"], kernel.metadata.name
assert "mul.rn.f64" in kernels["_augment_kernel"].asm["ptx"]
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True
    )
    assert not done.returncode, done.stderr


@pytest.mark.gpu
def test_augment_is_captured_in_a_cuda_graph() -> None:
    images = pictures(36, 224, 224)
    operations = mixed(36, 2)
    ops, args = packed(operations)
    expected = augment(images, ops, args)  # compiles
    equal(expected, by_timm(images, operations))
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = augment(images, ops, args)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = augment(images, ops, args)
    graph.replay()
    equal(again, expected)
    equal(replayed, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(2, 4, 4, 3)}, "uint8"),
        ({"images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8)}, "H, W, 3"),
        ({"ops": torch.zeros(2, 1, dtype=torch.int64)}, "int32"),
        ({"ops": torch.zeros(3, 1, dtype=torch.int32)}, "int32 \\(2, L\\)"),
        ({"args": torch.zeros(2, 1, 2)}, "float64"),
        ({"args": torch.zeros(2, 2, dtype=torch.float64)}, "\\(2, 1, 2\\)"),
        ({"fill": (0, 0, 256)}, "256"),
        ({"layer_ops": [["Rotated"]]}, "Rotated"),
        ({"layer_ops": [["Rotate"]] * 2}, "1 layers"),
    ],
)
def test_augment_rejects_wrong_arguments(change: dict[str, Any], message: str) -> None:
    images = pictures(2, 4, 4).cpu()
    ops, args = mixed(2, 1)
    good: dict[str, Any] = {"images": images, "ops": ops, "args": pack_args(ops, args)}
    with pytest.raises(ValueError, match=message):
        augment(**good | change)
