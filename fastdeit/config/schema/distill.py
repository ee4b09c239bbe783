"""The settings of the teacher and of the losses."""

from dataclasses import dataclass
from typing import Any, Literal

from fastdeit.config.parse import (
    MAX_TEACHER_SIZE,
    Section,
    pair_teachers,
    refuse_secret,
    runs_code,
)


@dataclass(frozen=True)
class DistillConfig(Section):
    teacher_model: str = "regnety_160"
    """A timm model; or a program, which runs: torchscript or export (of --teacher-path), or
    module:callable. Several, separated by commas: the mean of their logits."""
    teacher_path: str = ""
    """The teacher's weights: a file (.safetensors, .pth; .pt, .pt2 for a program), a run folder,
    hf-hub:OWNER/NAME, local-dir:FOLDER or https://... Those of several teachers are separated by
    commas; one with a comma is in double quotes."""
    pretrained_teacher: bool = False
    """The teacher's weights are those that timm has for --teacher-model, NAME or NAME.TAG; DeiT's
    teacher is regnety_160.deit_in1k."""
    teacher_mean: tuple[float, float, float] | None = None
    """Mean of each channel for the teacher, in place of its own (docs/teachers.md)."""
    teacher_std: tuple[float, float, float] | None = None
    """Standard deviation of each channel for the teacher, in place of its own."""
    teacher_input_size: int | None = None
    """Side of the teacher's images in pixels, in place of its own."""
    teacher_batch: int = 0
    """Images that the teacher takes at once, for less memory; 0: those of --micro-batch."""
    teacher_benchmark: bool = False
    """Let cuDNN time its algorithms for the teacher's convolutions and take the fastest: another
    process may take others, which round differently (docs/teachers.md)."""
    distillation_type: Literal["none", "soft", "hard"] = "hard"
    """none, soft (Kullback-Leibler divergence), or hard (cross-entropy to the teacher's class)."""
    distillation_alpha: float = 0.5
    """Weight of the distillation loss; the label loss has the weight 1 - alpha."""
    distillation_tau: float = 3.0
    """Temperature of soft distillation."""
    distillation_legacy: bool = False
    """Divide the soft loss by batch size and classes, as deit's code does, not by batch size."""
    cache: str = ""
    """Teacher cache (fastdeit cache build) to read in place of running the teacher."""
    cache_miss: Literal["error", "live", "ground-truth"] = "error"
    """For a record that is missing in --cache: exit, run the teacher, or take the label with
    the larger share (hard distillation only)."""
    cache_period: int = 0
    """Repeat the samples after this number of epochs, for a smaller teacher cache; 0: never."""
    bce_loss: bool = False
    """Binary cross-entropy to the mixed targets (DeiT III); needs --smoothing 0."""
    cosub: bool = False
    """Train two submodels of the model at once, each image twice with other DropPath masks (arXiv
    2212.04884); with --bce-loss and without a teacher."""

    def check(self) -> None:
        self._check_teachers()
        self._check_view()
        self._require("distillation_alpha", 0 <= self.distillation_alpha <= 1, "from 0 to 1")
        self._require("distillation_tau", self.distillation_tau > 0, "above 0")
        alone = self.bce_loss and self.distillation_type == "none"
        allowed = "off without --bce-loss and --distillation-type none"
        self._require("cosub", alone or not self.cosub, allowed)
        self._require("teacher_batch", self.teacher_batch >= 0, "0 or more")
        self._require("cache_period", self.cache_period >= 0, "0 or more")
        kind = self.distillation_type
        unused = bool(self.cache) and kind == "none"
        self._require("cache", not unused, "empty with --distillation-type none")
        labels_only = self.cache_miss == "ground-truth" and kind == "soft"
        allowed = "error or live with --distillation-type soft"
        self._require("cache_miss", not labels_only, allowed)

    def _check_teachers(self) -> None:
        for _, source in pair_teachers(self.teacher_model, self.teacher_path):
            refuse_secret("teacher_path", source)
        if self.pretrained_teacher:
            self._require("teacher_path", not self.teacher_path, "empty with --pretrained-teacher")
        named = all(name for name, _ in self.teachers) and not runs_code(self.teacher_model)
        allowed = "a timm model with --pretrained-teacher"
        self._require("teacher_model", named or not self.pretrained_teacher, allowed)

    def _check_view(self) -> None:
        mean, std, size = self.teacher_mean, self.teacher_std, self.teacher_input_size
        ok = mean is None or all(0 <= value <= 1 for value in mean)
        self._require("teacher_mean", ok, "three numbers from 0 to 1")
        ok = std is None or all(0 < value <= 1 for value in std)
        self._require("teacher_std", ok, "three numbers above 0, at most 1")
        ok = size is None or 1 <= size <= MAX_TEACHER_SIZE
        self._require("teacher_input_size", ok, f"1 to {MAX_TEACHER_SIZE} pixels")

    @property
    def teachers(self) -> list[tuple[str, str]]:
        """Return the name of each teacher and the source of its weights, "" if none is named."""
        pairs = pair_teachers(self.teacher_model, self.teacher_path)
        return [(name, name) for name, _ in pairs] if self.pretrained_teacher else pairs

    @property
    def teacher_view(self) -> dict[str, Any]:
        """Return the mean, std and input size that the settings give the teacher, by timm's
        names."""
        view = {
            "mean": self.teacher_mean,
            "std": self.teacher_std,
            "input_size": self.teacher_input_size,
        }
        return {name: value for name, value in view.items() if value is not None}

    @property
    def needs_teacher(self) -> bool:
        """Return True if the run has to load the teacher itself."""
        return self.distillation_type != "none" and (not self.cache or self.cache_miss == "live")
