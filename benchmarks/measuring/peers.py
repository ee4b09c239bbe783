"""The peer of whole steps: timm training the same student on the same batches.

It has fp32 weights, under autocast if ours trains in bf16; the two heads with deit's soft-target
and hard-label losses; timm's parameter groups, schedule, EMA and gradient scaler. With fused AdamW
the scaler skips a step with non-finite gradients without a synchronisation, while the scripts of
timm and deit read the loss in every step: the peer is as fast as its users could make it.
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

from benchmarks.measuring.trainers import CLASSES, STEPS_PER_EPOCH, decisions, model_sizes
from fastdeit.config.schema import Config
from fastdeit.data.loaders.batch import Batch
from fastdeit.kernels.mix import mix_reference
from fastdeit.training.optim.schedule import build_schedule


def timm_student(name: str, **sizes: object) -> nn.Module:
    """Build timm's distilled DeiT, which returns the logits of both heads, in training mode."""
    student = timm.create_model(name, num_classes=CLASSES, **sizes)
    student.set_distilled_training(True)
    return student.train()


def soft_target(labels: torch.Tensor, lam: torch.Tensor) -> torch.Tensor:
    """Return fp32 (B, CLASSES): labels smoothed by 0.1, lam · own + (1 - lam) · partner's."""
    smooth = one_hot(labels, CLASSES, 0.9 + 0.1 / CLASSES, 0.1 / CLASSES)
    share = lam[:, None]
    return share * smooth + (1 - share) * smooth.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def hard_distillation(
    outputs: tuple[torch.Tensor, torch.Tensor], target: torch.Tensor, decision: torch.Tensor
) -> torch.Tensor:
    """Return deit's loss with a weight of one half. Source: deit, losses.py."""
    cls, dist = outputs
    base = SoftTargetCrossEntropy()(cls.float(), target)
    return (base + F.cross_entropy(dist.float(), decision)) / 2


@contextlib.contextmanager
def no_branch_dropped() -> Iterator[None]:
    """Make timm's DropPath keep every branch, with the scale of kept branches."""
    with mock.patch.object(DropPath, "forward", lambda layer, x: x / (1 - layer.drop_prob)):
        yield


class TimmTrainer:
    """A trainer of timm's student with everything that a step of `Trainer` has, in one process and
    one micro-batch a step.

    mode: of torch.compile, for mixing, forward, loss and backward; None: eager.
    """

    def __init__(self, config: Config, device: torch.device, mode: str | None) -> None:
        model = config.model
        optim = config.optim
        same = {
            "drop_path_rate": model.drop_path,
            "qkv_bias": model.qkv_bias,
            "img_size": config.data.input_size,
            **model_sizes(config),
        }
        self.model = timm_student(model.model, **same).to(device)
        self.bf16 = config.run.precision == "bf16"
        self.clip_grad = optim.clip_grad
        exempt = self.model.no_weight_decay()  # type: ignore[operator]
        groups = param_groups_weight_decay(
            self.model, optim.weight_decay, no_weight_decay_list=exempt
        )
        self.optimizer = torch.optim.AdamW(
            groups, optim.scaled_lr, optim.opt_betas, optim.opt_eps, fused=True
        )
        self.schedule = build_schedule(
            self.optimizer,
            epochs=optim.epochs,
            steps_per_epoch=STEPS_PER_EPOCH,
            warmup_epochs=optim.warmup_epochs,
            warmup_lr=optim.warmup_lr,
            min_lr=optim.min_lr,
        )
        self.scaler = NativeScaler(device.type)
        self.ema = ModelEmaV3(self.model, optim.model_ema_decay)
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
        """Take one optimizer step; return the loss, on the device."""
        # "reduce-overhead" may overwrite the outputs of the last step
        torch.compiler.cudagraph_mark_step_begin()
        self.schedule.step_update(self.step)
        loss = self.loss(batch)
        parameters = self.model.parameters()
        self.scaler(loss, self.optimizer, clip_grad=self.clip_grad, parameters=parameters)
        self.optimizer.zero_grad()
        self.ema.update(self.model)
        self.step += 1
        return loss.detach()
