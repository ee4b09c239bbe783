"""Batch norms folded into convolutions: the same logits for many families, and never wrong ones."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from fastdeit.models.execution.folding import count_norms, fold_batch_norms

SIZE = 64
FAMILIES = {
    "regnety_002": 0,
    "resnet10t": 0,
    "mobilenetv3_small_050": 0,
    "repghostnet_050": 0,
    "levit_128s": None,
    "test_resnet": 0,
    "test_efficientnet": 0,
}
"""Models, and the batch norms that remain; None: some."""
MORE = {
    "resnetv2_50t": None,  # norms before convolutions
    "densenet121": None,
    "efficientnet_b0": 0,
    "tf_efficientnet_b0": 0,  # padding by the size of the image
    "repvgg_a0": 0,
    "mobileone_s0": 0,
    "fastvit_t8": 0,
    "tresnet_m": 0,
    "xception41": 0,
    "convnext_femto": 0,
    "seresnet33ts": 0,
}
"""Others, for `make test-slow`."""


def draw_statistics(model: nn.Module) -> nn.Module:
    """Give batch norms statistics as of a trained network; return the model in evaluation mode."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1.2)
            nn.init.normal_(module.bias, std=0.1)
    return model.eval()


def make_timm_model(name: str) -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"img_size": SIZE} if name.startswith("levit") else {}
    return draw_statistics(timm.create_model(name, num_classes=10, **sizes))


def draw_images(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def check_equal(model: nn.Module, rest: int | None) -> None:
    """Assert equal fp32 logits with at most `rest` batch norms."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = count_norms(model)
    folded = fold_batch_norms(model, SIZE)
    expected = model(draw_images())
    scale = expected.abs().max().item()
    found = folded.network.float()(draw_images())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * max(1, scale))
    remaining = count_norms(folded.network)
    assert remaining == before - folded.norms
    assert remaining == rest if rest is not None else 0 < remaining < before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_of_a_folded_network_are_those_of_the_file(name: str) -> None:
    check_equal(make_timm_model(name), FAMILIES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_logits_of_more_families_are_those_of_the_file(name: str) -> None:
    check_equal(make_timm_model(name), MORE[name])


class Net(nn.Module):
    """A convolution, a batch norm and a head; `mix` is what lies between."""

    def __init__(self, mix: Callable[["Net", torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.mix = mix

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.mix(self, images).mean((2, 3))


KEPT: dict[str, Callable[[Net, torch.Tensor], torch.Tensor]] = {
    "used twice": lambda net, x: net.norm(y := net.conv(x)) + y,
    "changed between": lambda net, x: net.norm(net.conv(x).relu()),
    "changed in place": lambda net, x: net.norm(net.conv(x).relu_()),
    "one convolution, two calls": lambda net, x: net.norm(net.conv(net.conv(x))),
    "one norm, two calls": lambda net, x: net.norm(net.norm(net.conv(x))),
    "weights changed before": lambda net, x: net.norm(F.conv2d(x, net.conv.weight.tanh())),
    "norm before": lambda net, x: net.conv(net.norm(x)),
    "a view of it elsewhere": lambda net, x: net.norm(y := net.conv(x)) * y.flatten().mean(),
    "dtype in the code": lambda net, x: net.norm(net.conv(x.float())),
    "weights read elsewhere": lambda net, x: net.norm(net.conv(x)) * net.conv.weight.mean(),
    "module read elsewhere": lambda net, x: net.norm(net.conv(x)) * net.norm.eps,
}


@pytest.mark.parametrize("name", KEPT)
def test_what_cannot_be_folded_is_the_same_network(name: str) -> None:
    network = draw_statistics(Net(KEPT[name]))
    folded = fold_batch_norms(network, SIZE)
    assert folded.network is network and folded.norms == 0


def test_a_plain_convolution_and_norm_are_folded() -> None:
    check_equal(draw_statistics(Net(lambda net, x: net.norm(net.conv(x)))), 0)


def test_a_network_without_statistics_is_left_as_it_is() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3, track_running_stats=False))
    assert fold_batch_norms(network.eval(), SIZE).network is network


def test_a_network_that_would_give_other_logits_is_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The check of the logits alone finds a wrong fold."""
    network = make_timm_model("test_resnet")
    fault = "fastdeit.models.execution.folding.fuse_conv_bn_eval"
    monkeypatch.setattr(fault, lambda conv, norm: conv)
    assert fold_batch_norms(network, SIZE).network is network


def test_folded_networks_decide_no_worse_in_bf16() -> None:
    images = draw_images(64)
    wrong = {"as it is": 0, "folded": 0}
    for name in ("test_efficientnet", "test_resnet"):
        model = make_timm_model(name)
        with torch.no_grad():
            exact = model(images).argmax(1)
            forms = {"folded": fold_batch_norms(model, SIZE).network, "as it is": model}
            for form, network in forms.items():
                logits = network.bfloat16()(images.bfloat16())
                wrong[form] += int((logits.argmax(1) != exact).sum())
    assert wrong["folded"] <= wrong["as it is"]
