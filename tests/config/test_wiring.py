"""Wiring: every field of `Config` is read by some builder, and what is built holds its value."""

import ast
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastdeit
from fastdeit.commands.runs.train import train_command
from fastdeit.config.cli import parse_config
from fastdeit.config.schema import Config
from fastdeit.data.build import (
    build_data,
    build_eval_loader,
    build_quarantine,
    build_train_index,
    build_train_loader,
    pipeline_options,
)
from fastdeit.data.formats.listing import DataError
from fastdeit.data.quarantine import Quarantine
from fastdeit.distributed.world import World, init_distributed
from fastdeit.models.build import build_model, find_execution, precision
from fastdeit.plan.build import build_plan
from fastdeit.training.build import build_deepspeed_config
from fastdeit.training.forward import PlannedStudent
from fastdeit.training.losses import CosubLoss, DistillationLoss
from fastdeit.training.trainer import Trainer
from tests.support.cache_runs import MODEL, Setting
from tests.support.tiny_student import EPOCHS, STEPS_PER_EPOCH, configure, make_trainer

FIELDS = [
    f"{section.name}.{field.name}"
    for section in dataclasses.fields(Config)
    for field in dataclasses.fields(getattr(Config(), section.name))
]
ONLY_SOMETIMES = {
    "distill.cache_miss",
    "health.max_bad_steps",
    "health.max_rollbacks",
    "model.pos_embed_antialias",
    "tracking.wandb_project",
    "tracking.wandb_tags",
}
"""Fields that a run without a cache, bad steps, --finetune and --log-wandb does not read."""


def record_reads(config: Config, reads: set[str]) -> Config:
    """Return a copy that adds `SECTION.FIELD` to `reads` whenever a field is read."""

    class Recorded(Config):
        def to_dict(self) -> dict[str, dict[str, Any]]:
            return config.to_dict()  # for config.yaml and messages: no use of a value

        def replace(self, **sections: dict[str, Any]) -> Config:
            return record_reads(config.replace(**sections), reads)

    copy = object.__new__(Recorded)
    for section in dataclasses.fields(Config):
        copy.__dict__[section.name] = _record_section(section.name, config, reads)
    return copy


def _record_section(name: str, config: Config, reads: set[str]) -> Any:
    section = getattr(config, name)
    fields = {field.name for field in dataclasses.fields(section)}

    class Recorded(type(section)):  # type: ignore[misc]
        def __getattribute__(self, attribute: str) -> Any:
            if attribute in fields:
                reads.add(f"{name}.{attribute}")
            return super().__getattribute__(attribute)

    copy = object.__new__(Recorded)
    copy.__dict__.update(vars(section))
    return copy


@pytest.fixture(scope="module")
def reads(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The fields that a whole run reads: one epoch of a tiny student with a live teacher."""
    init_distributed()
    setting, found = Setting(tmp_path_factory.mktemp("wiring")), set[str]()
    flags = [*setting.samples, *MODEL, *setting.taught, "--epochs", "1", "--aa", "3a"]
    config, _ = parse_config([*flags, "--output-dir", str(setting.root / "run")], "test")
    with pytest.MonkeyPatch.context() as patch:
        recorded = record_reads(config, found)
        patch.setattr("fastdeit.commands.runs.train.parse_config", lambda *_: (recorded, "deit"))
        assert train_command([]) == 0
    return found


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_read(name: str, reads: set[str]) -> None:
    if name in ONLY_SOMETIMES:
        assert name.partition(".")[2] in _attributes_read()
    else:
        assert name in reads


def _attributes_read() -> set[str]:
    """Return the attributes that the product reads, outside config/."""
    root = Path(fastdeit.__file__).parent
    files = [path for path in root.rglob("*.py") if path.parent.name != "config"]
    nodes = (node for path in files for node in ast.walk(ast.parse(path.read_text())))
    return {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def test_the_recorder_misses_nothing_and_invents_nothing() -> None:
    found: set[str] = set()
    config = record_reads(Config(), found)
    assert not found and isinstance(config.optim.scaled_lr, float)
    assert found == {"optim.lr", "optim.unscale_lr", "optim.batch_size"}
    config.to_dict()
    config.replace(limits={"step_limit": 5.0}).limits.sections()
    limits = {name for name in FIELDS if name.startswith("limits.")}
    assert found == {"optim.lr", "optim.unscale_lr", "optim.batch_size"} | limits


CPU = World(0, 1, 0, 1, torch.device("cpu"))
CUDA = World(0, 1, 0, 1, torch.device("cuda:0"))
SIZES = np.full((40, 2), 300)
Probe = Callable[[Config], Any]


def _plan(name: str) -> Probe:
    return lambda config: getattr(build_plan(config, SIZES).spec, name)


PLAN: dict[str, tuple[Any, Probe, Any]] = {
    "run.seed": (7, _plan("seed"), 7),
    "data.input_size": (64, _plan("input_size"), 64),
    "augment.aa": ("rand-m3-n4-mstd1-inc1", _plan("ra_layers"), 4),
    "augment.src": (True, _plan("simple_crop"), True),
    "augment.scale": ((0.2, 0.3), _plan("scale"), (0.2, 0.3)),
    "augment.ratio": ((0.2, 0.3), _plan("ratio"), (0.2, 0.3)),
    "augment.hflip": (0.1, _plan("hflip"), 0.1),
    "augment.reprob": (0.1, _plan("reprob"), 0.1),
    "augment.remode": ("rand", _plan("remode"), "rand"),
    "augment.repeated_aug": (False, _plan("repeats"), 1),
    "augment.aug_repeats": (5, _plan("repeats"), 5),
    "mix.mixup": (0.1, _plan("mixup"), 0.1),
    "mix.cutmix": (0.1, _plan("cutmix"), 0.1),
    "mix.cutmix_minmax": ((0.2, 0.3), _plan("cutmix_minmax"), (0.2, 0.3)),
    "mix.mixup_prob": (0.1, _plan("mixup_prob"), 0.1),
    "mix.mixup_switch_prob": (0.1, _plan("mixup_switch_prob"), 0.1),
    "mix.mixup_group": (8, _plan("mixup_group"), 8),
}


def _options(name: str, world: World = CPU) -> Probe:
    return lambda config: getattr(pipeline_options(config, world), name)


def _settings(*keys: str) -> Probe:
    def probe(config: Config) -> Any:
        found: Any = build_deepspeed_config(config, CPU)
        for key in keys:
            found = found[key]
        return found

    return probe


def _execution(name: str) -> Probe:
    return lambda config: getattr(find_execution(config), name)


OTHERS: dict[str, tuple[Any, Probe, Any]] = {
    "data.mean": ((0.1, 0.2, 0.3), _options("mean"), (0.1, 0.2, 0.3)),
    "data.std": ((0.1, 0.2, 0.3), _options("std"), (0.1, 0.2, 0.3)),
    "data.num_workers": (5, _options("num_threads"), 5),
    "data.prefetch": (5, _options("prefetch"), 5),
    "data.read_ahead": ("off", _options("read_ahead"), False),
    "augment.augment_backend": ("native", _options("backend"), "native"),
    "augment.augment_device": ("gpu", _options("uses_kernels", CUDA), True),
    "optim.batch_size": (64, _settings("train_batch_size"), 64),
    "optim.micro_batch": (8, _settings("train_micro_batch_size_per_gpu"), 8),
    "optim.clip_grad": (0.5, _settings("gradient_clipping"), 0.5),
    "distill.teacher_batch": (4, _execution("batch"), 4),
    "distill.teacher_benchmark": (True, _execution("benchmark"), True),
    "run.compile": ("on", _execution("compiled"), True),
    "run.precision": ("bf16", lambda config: precision(config, CPU)[0], "bf16"),
    "run.zero_stage": (3, _settings("zero_optimization", "stage"), 3),
    "limits.startup_limit": (5.0, lambda config: config.limits.sections()["startup"], 5.0),
    "limits.data_limit": (5.0, lambda config: config.limits.sections()["data"], 5.0),
    "limits.step_limit": (5.0, lambda config: config.limits.sections()["step"], 5.0),
    "limits.evaluation_limit": (5.0, lambda config: config.limits.sections()["evaluation"], 5.0),
    "limits.checkpoint_limit": (5.0, lambda config: config.limits.sections()["checkpoint"], 5.0),
}


def change(config: Config, field: str, value: Any) -> Config:
    section, _, name = field.partition(".")
    return config.replace(**{section: {name: value}})


@pytest.mark.parametrize("field", PLAN | OTHERS)
def test_the_plan_the_graph_and_deepspeed_hold_the_value(field: str) -> None:
    value, probe, expected = (PLAN | OTHERS)[field]
    assert probe(Config()) != expected
    assert probe(change(Config(), field, value)) == expected


def test_colour_jitter_reaches_the_plan_without_rand_augment() -> None:
    config = Config().replace(augment={"aa": "none", "color_jitter": 0.2})
    assert build_plan(config, SIZES).spec.color_jitter == 0.2


def _train(**sections: dict[str, Any]) -> Trainer:
    return make_trainer(configure().replace(**sections), init_distributed())


def _group(trainer: Trainer) -> dict[str, Any]:
    return trainer.engine.optimizer.param_groups[0]


def _decays(trainer: Trainer, name: str) -> bool:
    """Return True if a parameter is in the group with weight decay."""
    groups = zip(trainer.engine.module.slots, trainer.engine.optimizer.param_groups, strict=True)
    decayed = [slot.name for slots, group in groups if group["weight_decay"] for slot in slots]
    return name in decayed


def _largest(trainer: Trainer, name: str) -> float:
    return max(group[name] for group in trainer.engine.optimizer.param_groups)


TRAINER: dict[str, tuple[dict[str, Any], Callable[[Any], Any], Any]] = {
    "optim.lr": ({"lr": 0.25, "batch_size": 512}, lambda t: t.schedule.base_values[0], 0.25),
    "optim.unscale_lr": ({"unscale_lr": True}, lambda t: t.schedule.base_values[0], 3e-2),
    "optim.weight_decay": ({"weight_decay": 0.3}, lambda t: _largest(t, "weight_decay"), 0.3),
    "optim.opt_betas": ({"opt_betas": (0.8, 0.95)}, lambda t: _group(t)["betas"], (0.8, 0.95)),
    "optim.opt_eps": ({"opt_eps": 1e-5}, lambda t: _group(t)["eps"], 1e-5),
    "optim.layer_decay": ({"layer_decay": 0.5}, lambda t: _group(t).get("lr_scale"), 0.125),
    "run.grad_checkpointing": (
        {"grad_checkpointing": True},
        lambda t: t.state.model.grad_checkpointing,
        True,
    ),
    "optim.epochs": (
        {"epochs": EPOCHS + 2},
        lambda t: t.schedule.t_initial,
        (EPOCHS + 2) * STEPS_PER_EPOCH,
    ),
    "optim.warmup_epochs": (
        {"warmup_epochs": 2},
        lambda t: t.schedule.warmup_t,
        2 * STEPS_PER_EPOCH,
    ),
    "optim.warmup_lr": ({"warmup_lr": 5e-4}, lambda t: t.schedule.warmup_lr_init, 5e-4),
    "optim.min_lr": ({"min_lr": 5e-4}, lambda t: t.schedule.lr_min, 5e-4),
    "optim.sched_on_updates": (
        {"sched_on_updates": False},
        lambda t: t.schedule.t_initial,
        EPOCHS,
    ),
    "optim.sched_lag": (
        {"sched_on_updates": False, "sched_lag": 3},
        lambda t: getattr(t.schedule, "lag", None),
        3,
    ),
    "optim.dist_token_decay": (
        {"dist_token_decay": True},
        lambda t: _decays(t, "dist_token"),
        True,
    ),
    "optim.model_ema_warmup": (
        {"model_ema_warmup": True},
        lambda t: vars(t.state.ema)["warmup"],
        True,
    ),
    "optim.model_ema": ({"model_ema": False}, lambda t: t.state.ema, None),
    "optim.model_ema_decay": ({"model_ema_decay": 0.5}, lambda t: vars(t.state.ema)["decay"], 0.5),
    "distill.distillation_type": (
        {"distillation_type": "soft"},
        lambda t: t.criterion.kind,
        "soft",
    ),
    "distill.distillation_alpha": (
        {"distillation_alpha": 0.2},
        lambda t: t.criterion.alpha,
        0.2,
    ),
    "distill.distillation_tau": ({"distillation_tau": 7.0}, lambda t: t.criterion.tau, 7.0),
    "distill.distillation_legacy": (
        {"distillation_legacy": True},
        lambda t: t.criterion.legacy,
        True,
    ),
    "mix.smoothing": ({"smoothing": 0.2}, lambda t: t.criterion.smoothing, 0.2),
}


@pytest.mark.parametrize("field", TRAINER)
def test_the_trainer_holds_the_value(field: str) -> None:
    changes, probe, expected = TRAINER[field]
    assert probe(_train()) != expected
    assert probe(_train(**{field.partition(".")[0]: changes})) == expected


def test_the_bce_loss_is_built() -> None:
    criterion = _train(mix={"smoothing": 0.0}, distill={"bce_loss": True}).criterion
    assert isinstance(criterion, DistillationLoss) and criterion.bce


def test_cosub_is_built() -> None:
    distill = {"bce_loss": True, "cosub": True, "distillation_type": "none"}
    trainer = _train(mix={"smoothing": 0.0}, distill=distill)
    assert isinstance(trainer.criterion, CosubLoss)
    assert isinstance(trainer.forward, PlannedStudent) and trainer.forward.copies == 2


def test_settings_of_a_users_own_file_reach_deepspeed(tmp_path: Path) -> None:
    file = tmp_path / "deepspeed.json"
    file.write_text(json.dumps({"wall_clock_breakdown": True}))
    config = Config().replace(run={"deepspeed_config": str(file)})
    assert build_deepspeed_config(config, CPU)["wall_clock_breakdown"] is True


def test_offload_reaches_deepspeed() -> None:
    config = Config().replace(run={"zero_stage": 2, "offload_optimizer": True})
    settings = build_deepspeed_config(config, CPU)
    assert settings["zero_optimization"]["offload_optimizer"]["device"] == "cpu"


def test_the_students_sizes_are_built() -> None:
    sizes = {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
    parts = {"qkv_bias": True, "drop_path": 0.2, "init_values": 0.5, "registers": 3}
    config = Config().replace(model={**sizes, **parts}, data={"input_size": 32})
    model: Any = build_model(config, tuple("abcde"))[0]
    assert len(model.blocks) == 3 and model.num_heads == 2
    assert model.pos_embed.shape == (1, 2 + 3 + 16, 24)
    assert model.reg_token.shape == (1, 3, 24) and model.blocks[2].ls2.gamma[0] == 0.5
    assert model.drop_path_rates[-1] == pytest.approx(0.2)
    assert any("qkv.bias" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("kind", ["headers", "decode"])
def test_images_are_checked_as_the_settings_say(kind: str, tmp_path: Path) -> None:
    data = {"data_path": str(Setting(tmp_path).data), "index_check": kind}
    config = Config().replace(data=data, run={"output_dir": str(tmp_path / "run")})
    for index in (*build_data(config), build_train_index(config)):
        assert index.header_only is not None
        assert index.header_only.all() if kind == "headers" else not index.header_only.any()


def test_the_loaders_hold_sizes_splits_and_policy(tmp_path: Path) -> None:
    setting = Setting(tmp_path)
    (setting.data / "train").rename(setting.data / "first")
    (setting.data / "val").rename(setting.data / "second")
    config = Config().replace(
        data={
            "data_path": str(setting.data),
            "train_split": "first",
            "val_split": "second",
            "input_size": 32,
            "eval_input_size": 48,
            "eval_crop_ratio": 0.5,
            "bad_images": "error",
        },
        optim={"batch_size": 16, "micro_batch": 4},
        distill={"cache_period": 3},
        run={"output_dir": str(tmp_path / "run")},
    )
    train, val = build_data(config)
    assert (train.split, val.split) == ("first", "second")
    train, quarantine = build_quarantine(config, train)
    plan = build_plan(config, train.sizes)
    loader = build_train_loader(config, CPU, train, plan, quarantine=quarantine)
    assert loader.options.batch_size == 4 and loader.micro_steps == 4
    drawn = [loader.plan_batch(12 * epoch)[0].draws.noise_key.tolist() for epoch in range(4)]
    assert drawn[3] == drawn[0] and drawn[1] != drawn[0] != drawn[2]
    loader.close()
    eval_loader = build_eval_loader(config, CPU, val, quarantine)
    assert next(iter(eval_loader)).images.shape[2:] == (48, 48)
    eval_loader.close()
    with pytest.raises(DataError):
        quarantine.add({0: "is damaged"})


def test_the_evaluations_crop_is_the_given_share(tmp_path: Path) -> None:
    data = Setting(tmp_path).data
    config = Config().replace(data={"data_path": str(data), "input_size": 32})
    images = []
    for share in (0.5, 1.0):
        changed = change(config, "data.eval_crop_ratio", share)
        val = build_data(changed)[1]
        loader = build_eval_loader(changed, CPU, val, Quarantine(val))
        images.append(next(iter(loader)).images.clone())
        loader.close()
    assert not torch.equal(*images)


def test_the_digits_are_written_when_asked_for(tmp_path: Path) -> None:
    config = Config().replace(data={"data_path": str(tmp_path / "digits"), "data_set": "digits"})
    assert len(build_train_index(config)) == 1442
