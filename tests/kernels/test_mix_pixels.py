"""`mix` and `mix_patches` of pixels: the bits of mixing after normalising, reference and kernel.

.venv/bin/python -m pytest tests/kernels/test_mix_pixels.py, about 10 s
"""

from collections.abc import Iterator

import pytest
import torch

from fastdeit.kernels import backend, launch_configs
from fastdeit.kernels.mix import mix, mix_reference
from fastdeit.kernels.mix_kernels.pixels import mix_pixels
from fastdeit.kernels.mix_patches import mix_patches, mix_patches_reference
from fastdeit.kernels.normalise import DTYPES, MODES, Pixels, normalise_reference
from tests.kernels import interpreter
from tests.kernels.interpreter import DEVICE
from tests.kernels.test_normalise import assert_same_bits, make_pixels

interpreter.correct()
Pairs = tuple[Pixels, torch.Tensor, torch.Tensor]


@pytest.fixture
def fused() -> Iterator[None]:
    with backend.use_backend("triton"):
        yield


def make_pairs(shape: tuple[int, int, int], mode: str = "pixel") -> Pairs:
    """Return pixels, lam and box: pairs of Mixup and of CutMix in turn, also with lam 0 and 1."""
    batch, height, width = shape
    lam = torch.rand(batch, generator=torch.Generator().manual_seed(1))
    lam[-2:] = torch.tensor([0.0, 1.0])
    cut = torch.tensor([height // 4, width // 3, height, width - 1], dtype=torch.int32)
    box = torch.zeros(batch, 4, dtype=torch.int32)
    box[2:4] = cut
    pixels = make_pixels(shape, mode)
    pixels.erase[3:4] = pixels.erase[0]  # the second of its pair alone
    return pixels, lam.to(DEVICE), box.to(DEVICE)


def normalised(pairs: Pairs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return normalise_reference(*pairs[0]), pairs[1], pairs[2]


@pytest.mark.parametrize("mode", MODES)
def test_references_normalise_first(mode: str) -> None:
    pairs = make_pairs((6, 8, 12), mode)
    for dtype in (None, torch.bfloat16):
        assert_same_bits(mix_reference(*pairs, dtype), mix_reference(*normalised(pairs), dtype))
        patches, images = mix_patches_reference(*pairs, 4, dtype, with_images=True)
        expected = mix_patches_reference(*normalised(pairs), 4, dtype, with_images=True)
        assert images is not None and expected[1] is not None
        assert_same_bits(patches, expected[0])
        assert_same_bits(images, expected[1])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_mix_of_pixels_equals_mix_of_normalised_images(
    fused: None, channels_last: bool, mode: str
) -> None:
    pairs = make_pairs((6, 13, 21), mode)
    with interpreter.poisoned_memory():
        out = mix(*pairs, channels_last=channels_last)
    assert_same_bits(out, mix_reference(*normalised(pairs), channels_last=channels_last))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("patch", [1, 7, 8])
def test_patches_of_pixels_equal_patches_of_normalised_images(
    fused: None, patch: int, dtype: torch.dtype
) -> None:
    pairs = make_pairs((4, 2 * patch, 3 * patch))
    with interpreter.poisoned_memory():
        patches, images = mix_patches(*pairs, patch, dtype, with_images=True)
        alone, none = mix_patches(*pairs, patch, dtype)
    expected = mix_patches_reference(*normalised(pairs), patch, dtype, with_images=True)
    assert images is not None and expected[1] is not None and none is None
    assert_same_bits(patches, expected[0])
    assert_same_bits(alone, expected[0])
    assert_same_bits(images, expected[1])


@pytest.mark.parametrize("block", [64, 1024])
def test_blocks_of_any_size_join_without_a_gap(
    fused: None, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = next(row for row in launch_configs.rows() if row["op"] == "mix_pixels")
    monkeypatch.setitem(row, "launch", row["launch"] | {"BLOCK": block, "BLOCK_PART": 64})
    launch_configs._find_row.cache_clear()
    try:
        pairs = make_pairs((4, 16, 24))
        with interpreter.poisoned_memory():
            patches, _ = mix_patches(*pairs, 8, torch.float16)
    finally:
        launch_configs._find_row.cache_clear()
    assert_same_bits(patches, mix_patches_reference(*normalised(pairs), 8, torch.float16)[0])


@pytest.mark.slow
def test_a_batch_of_224_pixels_is_mixed_as_its_normalised_images(fused: None) -> None:
    pairs = make_pairs((4, 224, 224))
    patches, images = mix_patches(*pairs, 16, with_images=True)
    expected = mix_patches_reference(*normalised(pairs), 16, with_images=True)
    assert images is not None and expected[1] is not None
    assert_same_bits(patches, expected[0])
    assert_same_bits(images, expected[1])


@pytest.mark.parametrize("chosen", ["reference", "triton"])
def test_an_empty_batch_is_accepted(chosen: str) -> None:
    pixels, lam, box = make_pairs((2, 8, 16))
    images, levels, erase, mode, key = pixels
    empty = Pixels(images[:0], levels, erase[:0], mode, key[:0]), lam[:0], box[:0]
    with backend.use_backend(chosen):
        assert mix(*empty, torch.bfloat16).shape == (0, 3, 8, 16)
        patches, mixed = mix_patches(*empty, 8, with_images=True)
    assert mixed is not None and patches.shape == (0, 2, 192) and mixed.shape == (0, 3, 8, 16)


def test_absent_outputs_are_empty_and_the_operator_passes_opcheck() -> None:
    (images, levels, erase, _, key), lam, box = pairs = make_pairs((2, 4, 4))
    patches, _ = mix_pixels(*pairs, 0, torch.float32, True)
    _, mixed = mix_pixels(*pairs, 4, torch.float32, False)
    assert patches.numel() == mixed.numel() == 0
    arguments = (images, levels, erase, key, 2, lam, box, 4, torch.bfloat16, True, True)
    torch.library.opcheck(torch.ops.fastdeit.mix_pixels.default, arguments)


def test_wrong_pixels_are_rejected() -> None:
    pixels, lam, box = make_pairs((2, 8, 8))
    with pytest.raises(ValueError, match="mode must be one of"):
        mix(pixels._replace(mode="noise"), lam, box)
    with pytest.raises(ValueError, match="images must be uint8"):
        mix_patches(pixels._replace(images=pixels.images.float()), lam, box, 4)
    with pytest.raises(ValueError, match=r"multiples of 3 \(got \(2, 3, 8, 8\)\)"):
        mix_patches(pixels, lam, box, 3)
    with pytest.raises(ValueError, match="B even"):
        one = [tensor[:1] for tensor in (pixels.images, pixels.erase, pixels.key)]
        mix(Pixels(one[0], pixels.levels, one[1], "const", one[2]), lam[:1], box[:1])


@pytest.mark.gpu
def test_a_mix_of_pixels_has_the_cpus_bits_without_a_sync() -> None:
    pairs = make_pairs((64, 224, 224))
    mix_patches(*pairs, 16, torch.bfloat16, with_images=True)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        patches, mixed = mix_patches(*pairs, 16, torch.bfloat16, with_images=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    images, levels, erase, mode, key = pairs[0]
    pixels = Pixels(images.cpu(), levels.cpu(), erase.cpu(), mode, key.cpu())
    rows = (pixels, pairs[1].cpu(), pairs[2].cpu())
    expected = mix_patches_reference(*rows, 16, torch.bfloat16, with_images=True)
    assert mixed is not None and expected[1] is not None
    assert torch.equal(patches.cpu(), expected[0])
    assert torch.equal(mixed.cpu(), expected[1])
