"""timm's way to train the same student on the same batches: the peer of whole steps.

fp32 weights, under autocast where ours trains in bf16; the two heads with deit's soft-target and
hard-label losses; timm's groups, schedule, average and scaler. With AdamW's fused form that scaler
skips a step whose gradients are not finite without waiting for it, where timm's and deit's scripts
read the loss in every step: as fast as its users could have it.
"""

import contextlib
from collections.abc import Callable, Iterator
from unittest import mock

import timm
import torch
import torch.nn.functional as F
from timm.data.mixup import one_hot
from timm.layers import DropPath
from timm.loss import SoftTargetCrossEntropy
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3, NativeScaler
from torch import nn

from benchmarks.trainers import CLASSES, STEPS_PER_EPOCH, decisions, model_sizes
from fastdeit.config.schema import Config
from fastdeit.data.batch import Batch
from fastdeit.kernels.mix import mix_reference
from fastdeit.training.optim import build_schedule


def timm_student(name: str, **sizes: object) -> nn.Module:
    """timm's distilled DeiT with both heads' logits, in training mode."""
    student = timm.create_model(name, num_classes=CLASSES, **sizes)
    student.set_distilled_training(True)
    return student.train()


def soft_target(labels: torch.Tensor, lam: torch.Tensor) -> torch.Tensor:
    """fp32 (B, CLASSES): smoothed by 0.1 and mixed with the pair's partner, of which a sample has
    the share 1 - lam."""
    smooth = one_hot(labels, CLASSES, 0.9 + 0.1 / CLASSES, 0.1 / CLASSES)
    share = lam[:, None]
    return share * smooth + (1 - share) * smooth.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def hard_distillation(
    outputs: tuple[torch.Tensor, torch.Tensor], target: torch.Tensor, decision: torch.Tensor
) -> torch.Tensor:
    """deit's loss with its weight of one half. Source: deit losses.py."""
    cls, dist = outputs
    return (
        SoftTargetCrossEntropy()(cls.float(), target) + F.cross_entropy(dist.float(), decision)
    ) / 2


@contextlib.contextmanager
def no_branch_dropped() -> Iterator[None]:
    """timm's DropPath keeps every branch, scaled as a kept one."""
    with mock.patch.object(DropPath, "forward", lambda layer, x: x / (1 - layer.drop_prob)):
        yield


class TimmTrainer:
    """timm's student with all that a step of the config `Trainer` has; one process, one micro-batch
    a step.

    mode: of torch.compile, for mixing, forward, loss and backward; None: eager.
    """

    def __init__(self, config: Config, device: torch.device, mode: str | None) -> None:
        model, self.optim, size = config.model, config.optim, config.data.input_size
        same = {
            "drop_path_rate": model.drop_path,
            "qkv_bias": model.qkv_bias,
            "img_size": size,
            **model_sizes(config),
        }
        self.model = timm_student(model.model, **same).to(device)
        self.bf16 = config.run.precision == "bf16"
        exempt = self.model.no_weight_decay()  # type: ignore[operator]
        groups = param_groups_weight_decay(
            self.model, self.optim.weight_decay, no_weight_decay_list=exempt
        )
        self.optimizer = torch.optim.AdamW(
            groups, self.optim.scaled_lr, self.optim.opt_betas, self.optim.opt_eps, fused=True
        )
        total, warmup = (
            round(epochs * STEPS_PER_EPOCH)
            for epochs in (self.optim.epochs, self.optim.warmup_epochs)
        )
        rates = {"warmup_lr": self.optim.warmup_lr, "min_lr": self.optim.min_lr}
        self.schedule = build_schedule(
            self.optimizer, total_steps=total, warmup_steps=warmup, **rates
        )
        self.scaler, self.average = (
            NativeScaler(device.type),
            ModelEmaV3(self.model, self.optim.model_ema_decay),
        )
        self.loss: Callable[[Batch], torch.Tensor] = self._loss
        if mode is not None:
            self.loss = torch.compile(self._loss, mode=mode, fullgraph=True)
        self.step = 0

    def _loss(self, batch: Batch) -> torch.Tensor:
        images = mix_reference(batch.images, batch.lam, batch.box, torch.float32)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            outputs = self.model(images)
        return hard_distillation(outputs, soft_target(batch.labels, batch.lam), decisions(batch))

    def train_step(self, batch: Batch) -> torch.Tensor:
        """One optimizer step; the loss, on the device."""
        torch.compiler.cudagraph_mark_step_begin()  # what "reduce-overhead" gave in the last step may be written over
        self.schedule.step_update(self.step)
        loss = self.loss(batch)
        self.scaler(
            loss, self.optimizer, clip_grad=self.optim.clip_grad, parameters=self.model.parameters()
        )
        self.optimizer.zero_grad()
        self.average.update(self.model)
        self.step += 1
        return loss.detach()
