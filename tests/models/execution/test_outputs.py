"""`count_heads` on timm's models: one head, two heads, and what no loss can use."""

import pytest
import timm
import torch
from torch import nn

from fastdeit.models.execution.outputs import count_heads

SIZE = 32


def test_heads_are_counted_in_training() -> None:
    assert count_heads(timm.create_model("test_resnet", num_classes=7), "test_resnet", SIZE, 7) == 1
    two = timm.create_model("levit_128s", num_classes=7)
    assert count_heads(two, "levit_128s", 224, 7) == 1  # it returns the mean of both
    two.set_distilled_training(True)
    assert count_heads(two, "levit_128s", 224, 7) == 2


def test_nothing_changes() -> None:
    model = timm.create_model("test_resnet", num_classes=7, drop_rate=0.5).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    count_heads(model, "test_resnet", SIZE, 7)
    assert not model.training and torch.equal(torch.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert value.device.type == "cpu" and torch.equal(value, before[name]), name


class Outputs(nn.Module):
    """A network that returns what a function makes of the images."""

    def __init__(self, outputs: object) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, images: torch.Tensor) -> object:
        return self.outputs(images)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (lambda x: x.mean((2, 3)), r"not \(2, 3\) for two images"),
        (lambda x: x, r"not \(2, 3, 32, 32\) for"),
        (lambda x: (x.new_zeros(2, 7), x.new_zeros(2, 7), x), "and .* and"),
        (lambda x: [x.new_zeros(2, 7), x], "one head or two"),
        (lambda x: {"logits": x}, r"not \(\)"),
        (lambda x: x[:, :, ::0], "runs on images of 32 px; this one fails: "),
        (lambda x: x.view(1, 7), "fails: "),
    ],
)
def test_other_outputs_are_refused_in_one_line(outputs: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        count_heads(Outputs(outputs), "mine", SIZE, 7)
    error = str(caught.value)
    assert error.startswith("--model must be ") and error.endswith("(got 'mine')")
    assert "\n" not in error and len(error) < 300


def test_model_that_shares_weights_is_refused() -> None:
    """Those of CoaT: safetensors stores no tensor under two names."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match=r"1 are shared, such as \['1.weight'\]"):
        count_heads(model, "coat_tiny", SIZE, 3)
    assert model[0].weight.device.type == "cpu"


def test_model_that_asserts_another_size_is_refused() -> None:
    def fail(images: torch.Tensor) -> torch.Tensor:
        raise AssertionError

    with pytest.raises(ValueError, match="32 px; this one fails: AssertionError"):
        count_heads(Outputs(fail), "mine", SIZE, 7)


def test_model_that_the_meta_device_cannot_run_is_accepted() -> None:
    def read(images: torch.Tensor) -> torch.Tensor:
        return images.new_zeros(2, 7) * images.sum().item()

    assert count_heads(Outputs(read), "mine", SIZE, 7) == 1
