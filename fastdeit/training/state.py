"""State of training that a checkpoint holds: weights, moments, EMA, buffers and counters."""

import copy
from typing import Any

import torch
from torch import nn

from fastdeit.distributed.collectives import sum_on_ranks
from fastdeit.models.finetune.trainable import list_frozen_norms
from fastdeit.plan.digest import show_digest
from fastdeit.training.buffers import StepBuffers
from fastdeit.training.optim.ema import Ema
from fastdeit.training.zero.partitions import open_partitions

Tensors = dict[str, torch.Tensor]
"""Tensors by parameter or buffer name."""


class TrainerState:
    """Weights, Adam's moments, EMA and buffers of a model under a DeepSpeed engine (ZeRO 1, 2 or
    3), and the counters of its steps. Starts at step 0.

    engine: runs a `LossModule` (training/zero/flat.py). eval_model: a second copy of the model on
    the device, in evaluation mode and the training precision, for the EMA. ema_decay: None: no EMA;
    ema_warmup: as of `Ema`. frozen: the parameters that are not trained, fp32 on the CPU: the
    optimizer has no state of them, and the device holds them in the training precision.
    """

    def __init__(
        self,
        engine: Any,
        eval_model: nn.Module,
        ema_decay: float | None,
        rank: int,
        *,
        ema_warmup: bool = False,
        frozen: Tensors | None = None,
    ) -> None:
        self.engine = engine
        self.eval_model = eval_model
        self.rank = rank
        self.model: Any = engine.module.model
        self.partitions = open_partitions(engine)
        self._frozen: Tensors = frozen or {}
        self._frozen_ema = self._frozen
        self._frozen_norms = list_frozen_norms(self.model)
        self._persistent = frozenset(eval_model.state_dict())
        self.ema = None
        if ema_decay is not None:
            self.ema = Ema(self.partitions.masters, self.buffers(), ema_decay, warmup=ema_warmup)
        self._has_buffers = bool(self.buffers())
        self._step_buffers = StepBuffers(self.buffers)
        self.step = 0
        """The number of the next optimizer step."""
        self.digest = 0
        """The digest of all samples so far that this rank counts: its own, and on rank 0 those of
        earlier processes."""
        self._whole: nn.Module | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Return the training precision: the dtype of activations."""
        return next(self.eval_model.parameters()).dtype

    def buffers(self) -> Tensors:
        """Return the model's persistent buffers (a ConvNet's batch statistics), no copies."""
        named = self.model.named_buffers()
        return {name: buffer for name, buffer in named if name in self._persistent}

    @property
    def skipped(self) -> int:
        """Return the number of steps so far that changed nothing; waits for the device, on which
        the optimizer counts the others."""
        return self.step - self.partitions.count_applied()

    def prepare_step(self) -> None:
        """Set the model to training mode, frozen batch norms to evaluation mode; copy the buffers,
        which a skipped step shall not change."""
        if not self.model.training or any(layer.training for layer in self._frozen_norms):
            self.model.train()
            for layer in self._frozen_norms:
                layer.eval()
        if self.ema is not None:
            self.ema.set_rate(self.step)
        if self._has_buffers:
            self._step_buffers.save()

    def finish_step(self, skipped: torch.Tensor) -> None:
        """Update buffers and EMA after a step, or restore what a skipped step has changed; a
        collective.

        skipped: 0-d fp32 on the device, 1.0 or 0.0.
        """
        if self._has_buffers:
            self._step_buffers.finish(skipped)
        if self.ema is not None:
            buffers = self.buffers() if self._has_buffers else {}
            self.ema.update(self.partitions.masters, buffers, skipped)

    def weights(self) -> Tensors:
        """Return the fp32 weights and the buffers, on the CPU; a collective."""
        trained = self.partitions.gather(self.partitions.masters)
        return trained | self._frozen | _to_cpu(self.buffers())

    def ema_weights(self) -> Tensors | None:
        """Return the EMA's weights and buffers, on the CPU; None without EMA; a collective."""
        if self.ema is None:
            return None
        trained = self.partitions.gather(self.ema.flats)
        return trained | self._frozen_ema | _to_cpu(self.ema.buffers)

    def module(self) -> nn.Module:
        """Return the model in evaluation mode and the training precision; a collective.

        At ZeRO 3, where each rank holds a piece of every weight, it is a whole copy.
        """
        module = self.model.eval()
        if self.engine.zero_optimization_stage() < 3:
            return module
        if self._whole is None:
            self._whole = copy.deepcopy(self.eval_model)
        return _load(self._whole, self.weights())

    def ema_module(self) -> nn.Module | None:
        """Return a model with the EMA's weights, in evaluation mode and the training precision;
        None without EMA; a collective."""
        weights = self.ema_weights()
        if weights is None:
            return None
        return _load(self.eval_model, weights)

    def gather(self) -> tuple[dict[str, Tensors], dict[str, Any]]:
        """Return what a checkpoint holds of training: tensors by set and name, and JSON values; a
        collective."""
        adam_step, exp_avg, exp_avg_sq = self.partitions.moments()
        tensors = {
            "model": self.weights(),
            "exp_avg": self.partitions.gather(exp_avg),
            "exp_avg_sq": self.partitions.gather(exp_avg_sq),
        }
        ema = self.ema_weights()
        if ema is not None:
            tensors["ema"] = ema
        values = {"step": self.step, "adam_step": adam_step, "skipped": self.skipped}
        return tensors, values | {"digest": show_digest(self.gather_digest())}

    def gather_digest(self) -> int:
        """Return the digest of the samples of all steps so far, of all ranks; a collective."""
        return sum_on_ranks(self.digest)

    def layout(self) -> dict[str, Tensors]:
        """Return names, shapes and dtypes of the tensors that `gather` returns, without memory."""
        parameters = {
            name: torch.empty(parameter.shape, dtype=torch.float32, device="meta")
            for name, parameter in self.eval_model.named_parameters()
        }
        model = parameters | {name: value.to("meta") for name, value in self.buffers().items()}
        moments = {name: value for name, value in parameters.items() if name not in self._frozen}
        layout = {"model": model, "exp_avg": moments, "exp_avg_sq": moments}
        return layout if self.ema is None else layout | {"ema": model}

    def load(self, tensors: dict[str, Tensors], values: dict[str, Any]) -> None:
        """Restore what `gather` returned, at any world size and stage; a collective.

        Raises ValueError if names or shapes of the parameters differ.
        """
        model = tensors["model"]
        if _shapes(model) != _shapes(self.eval_model.state_dict()):
            kind = type(self.model).__name__
            raise ValueError(f"the checkpoint's parameters are not those of {kind} as configured")
        self.partitions.load(model)
        self.partitions.load_moments(values["adam_step"], tensors["exp_avg"], tensors["exp_avg_sq"])
        self._frozen = {name: model[name] for name in self._frozen}
        self.partitions.load_frozen(self._frozen)
        _copy(model, self.buffers())
        if self.ema is not None:
            ema = tensors.get("ema", model)
            self.partitions.scatter(ema, self.ema.flats)
            self._frozen_ema = {name: ema[name] for name in self._frozen}
            _copy(ema, self.ema.buffers)
        self.step = values["step"]
        self.digest = int(values.get("digest", "0"), 16) if self.rank == 0 else 0


def _load(module: nn.Module, weights: Tensors) -> nn.Module:
    """Load weights into a module; return it in evaluation mode."""
    module.load_state_dict(weights)
    # LeViT, TinyViT and others cache the biases of their attention until the mode is set again
    return module.eval()


def _shapes(named: Tensors) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in named.items()}


def _to_cpu(buffers: Tensors) -> Tensors:
    return {name: buffer.detach().cpu().clone() for name, buffer in buffers.items()}


def _copy(source: Tensors, destination: Tensors) -> None:
    for name, value in destination.items():
        value.copy_(source[name])
