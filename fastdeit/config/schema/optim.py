"""The settings of the optimizer, the learning rate and the EMA."""

from dataclasses import dataclass
from typing import Literal

from fastdeit.config.parse import Section


@dataclass(frozen=True)
class OptimConfig(Section):
    epochs: int = 300
    """Training epochs."""
    batch_size: int = 1024
    """Global batch size: over all devices and accumulated micro-batches."""
    micro_batch: int = 0
    """Samples per device and forward pass; the rest is accumulated. 0: no accumulation."""
    lr: float = 5e-4
    """Learning rate for a batch of 512; scaled by --batch-size / 512."""
    unscale_lr: bool = False
    """Do not scale --lr by the batch size."""
    weight_decay: float = 0.05
    """Weight decay; not for biases, norms, the position embedding and the tokens."""
    dist_token_decay: bool = False
    """Weight decay for the distillation token too, as in deit's code."""
    opt: Literal["adamw", "lamb"] = "adamw"
    """The optimizer: AdamW, or LAMB as in timm (DeiT III)."""
    opt_eps: float = 1e-8
    """The optimizer's epsilon."""
    opt_betas: tuple[float, float] = (0.9, 0.999)
    """The optimizer's betas."""
    clip_grad: float | None = None
    """Clip the global gradient norm to this value; without it --opt lamb clips to 1, as in timm."""
    layer_decay: float | None = None
    """Learning-rate factor from each block to the block below it (for fine-tuning)."""
    warmup_epochs: float = 5
    """Epochs of linear warm-up."""
    warmup_lr: float = 1e-6
    """Learning rate at the start of the warm-up; not scaled by the batch size."""
    min_lr: float = 1e-5
    """Learning rate at the end of the cosine schedule; not scaled by the batch size."""
    sched_on_updates: bool = True
    """A new learning rate every step; --no-sched-on-updates: every epoch, as in deit and timm."""
    sched_lag: int = 0
    """Epochs that the learning rate is late, with --no-sched-on-updates (deit's code: 1)."""
    model_ema: bool = True
    """Compute, evaluate and save an exponential moving average (EMA) of the weights."""
    model_ema_decay: float = 0.99996
    """Decay of the EMA per step."""
    model_ema_warmup: bool = False
    """Raise the decay of the EMA from 0, as timm does: for runs shorter than the EMA's memory."""

    def check(self) -> None:
        self._require("epochs", self.epochs >= 1, "1 or more")
        self._require_pairs("batch_size")
        if self.micro_batch:
            self._require_pairs("micro_batch")
        self._require("lr", self.lr > 0, "above 0")
        self._require("opt_eps", self.opt_eps > 0, "above 0")
        shares = all(0 <= beta < 1 for beta in self.opt_betas)
        self._require("opt_betas", shares, "two numbers, at least 0 and below 1")
        self._require_each(["weight_decay", "warmup_epochs"], 0)
        decay = self.layer_decay
        self._require("layer_decay", decay is None or 0 < decay <= 1, "above 0 and at most 1")
        self._require_rates()
        lags = self.sched_lag >= 0 and (self.sched_lag == 0 or not self.sched_on_updates)
        self._require("sched_lag", lags, "0, or more with --no-sched-on-updates")
        self._require("model_ema_decay", 0 < self.model_ema_decay < 1, "above 0 and below 1")
        self._require("clip_grad", self.clip_grad is None or self.clip_grad > 0, "above 0")

    def _require_rates(self) -> None:
        """Raise ValueError if the warm-up begins above the peak, or the schedule ends above it.

        If --min-lr equals --lr, or both are defaults, a small batch may have a lower peak than
        --min-lr: then the rate stays at the peak (`final_lr`).
        """
        peak = self.describe_peak()
        chosen = self.lr != OptimConfig.lr or self.min_lr != OptimConfig.min_lr
        constant = self.min_lr == self.lr
        falls = not chosen or constant or 0 <= self.min_lr <= self.scaled_lr
        self._require("min_lr", falls, f"0 or more, at most the peak rate, {peak}")
        rises = self.warmup_epochs == 0 or 0 <= self.warmup_lr <= self.scaled_lr
        self._require("warmup_lr", rises, f"0 or more, at most the peak rate, {peak}")

    def describe_peak(self) -> str:
        """Return the computation of the peak learning rate, as text."""
        scale = "" if self.unscale_lr else f" x {self.batch_size} / 512 = {self.scaled_lr:g}"
        return f"--lr {self.lr:g}{scale}"

    @property
    def final_lr(self) -> float:
        """Return the learning rate at the end: `min_lr`, at most the peak."""
        return min(self.min_lr, self.scaled_lr)

    @property
    def scaled_lr(self) -> float:
        """Return the peak learning rate: `lr` at a batch of 512, linear in the batch (arXiv
        2012.12877, section 6)."""
        return self.lr if self.unscale_lr else self.lr * self.batch_size / 512
