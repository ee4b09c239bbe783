"""The folder of one run, with the name of every file in it."""

from dataclasses import dataclass
from pathlib import Path

from fastdeit.storage.urls import find_cached, is_url


@dataclass(frozen=True)
class RunFolder:
    """The files of the run folder `path` (--output-dir). No other module has their names.

    Every run: config.yaml and deepspeed.json (the settings); inputs.json (the hashes of what else
    decides a loss); metrics.jsonl and tensorboard/ (the log); checkpoints/step-N/ (safetensors and
    JSON, by parameter name, independent of ZeRO stage and world size); model.safetensors and
    model_ema.safetensors (weights of the newest checkpoint, under timm's names, fp32),
    model_best.safetensors and model_ema_best.safetensors (those of the best evaluation),
    config.json (describes them, for timm and the Hugging Face Hub); predictions.parquet (the class
    of each validation image in the newest evaluation); report.html; train-images.parquet (the
    images the run started with); attempts.jsonl (one line per start);
    summary.json (results; it marks a finished run: only report.html is later).

    Only when there is cause: quarantine.jsonl (images that cannot be read), bad-steps.jsonl,
    spikes.jsonl, rollbacks.jsonl, failure-rankR.json and failures.jsonl (where ranks failed), and
    bad-step-N/ (a debug bundle). A file `stop`, created by the user, stops the run; `lock` exists
    while it is alive. With --log-wandb: wandb-run.json (the run's id there) and wandb/.
    `fastdeit replay` writes replay-N/.
    """

    path: Path

    @classmethod
    def of(cls, output_dir: str) -> "RunFolder":
        """Return the folder of --output-dir: for a URL, its working copy in the user's cache."""
        return cls(find_cached(output_dir, "runs") if is_url(output_dir) else Path(output_dir))

    def __str__(self) -> str:
        return str(self.path)

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def inputs(self) -> Path:
        return self.path / "inputs.json"

    @property
    def deepspeed_settings(self) -> Path:
        return self.path / "deepspeed.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def wandb_run(self) -> Path:
        """Return the file with the id of the run at Weights & Biases."""
        return self.path / "wandb-run.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model.safetensors"

    def weights(self, *, ema: bool = False) -> Path:
        """Return the file of the model's weights, or of their EMA, by its name in a run folder, in
        a checkpoint, or in a run of an earlier version, whichever exists."""
        names = ("model_ema", "ema", "student_ema") if ema else ("model", "student")
        files = [self.path / f"{name}.safetensors" for name in names]
        return next((file for file in files if file.is_file()), files[0])

    @property
    def model_ema(self) -> Path:
        return self.path / "model_ema.safetensors"

    @property
    def model_best(self) -> Path:
        return self.path / "model_best.safetensors"

    @property
    def model_ema_best(self) -> Path:
        return self.path / "model_ema_best.safetensors"

    @property
    def model_config(self) -> Path:
        return self.path / "config.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.parquet"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def is_finished(self) -> bool:
        """Return True if the run has ended: its summary is written after all files except the
        report."""
        return self.summary.is_file()

    def holds(self, path: Path) -> bool:
        """Return True if a path is in this folder."""
        return self.path.resolve() in path.resolve().parents

    @property
    def train_images(self) -> Path:
        return self.path / "train-images.parquet"

    @property
    def attempts(self) -> Path:
        return self.path / "attempts.jsonl"

    @property
    def quarantine(self) -> Path:
        return self.path / "quarantine.jsonl"

    @property
    def bad_steps(self) -> Path:
        return self.path / "bad-steps.jsonl"

    @property
    def spikes(self) -> Path:
        return self.path / "spikes.jsonl"

    @property
    def rollbacks(self) -> Path:
        return self.path / "rollbacks.jsonl"

    @property
    def failures(self) -> Path:
        """Return the file with the failures of all earlier attempts; those of the last attempt are
        in `failure_files`."""
        return self.path / "failures.jsonl"

    def failure(self, rank: int) -> Path:
        """Return the file in which a rank of the current attempt reports its failure."""
        return self.path / f"failure-rank{rank}.json"

    def failure_files(self) -> list[Path]:
        """Return the failure files of the last attempt, sorted by name."""
        return sorted(self.path.glob("failure-rank*.json"))

    @property
    def stop_request(self) -> Path:
        return self.path / "stop"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    def debug_bundle(self, step: int) -> Path:
        """Return the folder that explains a stop for bad steps; step: the first bad one."""
        return self.path / f"bad-step-{step}"

    def debug_bundles(self) -> list[Path]:
        """Return the debug bundles, sorted by name."""
        return sorted(self.path.glob("bad-step-*"))

    def replay(self, step: int) -> Path:
        """Return the folder in which `fastdeit replay` writes by default."""
        return self.path / f"replay-{step}"
