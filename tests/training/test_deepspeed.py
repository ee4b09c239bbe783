"""A person's DeepSpeed file: what it may set, what it must leave to the flags, and how the rest is
refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from deepspeed.runtime import constants
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig
from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

from fastdeit.distributed.world import init_distributed
from fastdeit.training.deepspeed import deepspeed_config
from fastdeit.training.deepspeed_file import FREE, MAX_BYTES, add_file
from tests.support.zero_ranks import OWN_FIELDS


@pytest.fixture(scope="module", autouse=True)
def world() -> Any:
    return init_distributed()


def ours(precision: str = "fp32", zero_stage: int = 1, **changes: Any) -> dict[str, Any]:
    sizes = {"batch_size": 16, "micro_batch": 4, "grad_accum_steps": 4, "clip_grad": 1.0}
    return deepspeed_config(precision=precision, zero_stage=zero_stage, **(sizes | changes))


def add(values: Any, tmp_path: Path, **changes: Any) -> dict[str, Any]:
    file = tmp_path / "ds.json"
    file.write_text(values if isinstance(values, str) else json.dumps(values))
    return add_file(ours(**changes), str(file))


def test_free_fields_are_added_and_what_agrees_is_taken(tmp_path: Path) -> None:
    theirs = {
        "train_batch_size": 16,
        "gradient_clipping": 1,
        "train_micro_batch_size_per_gpu": "auto",
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": False, "loss_scale": 0},
        "optimizer": None,
        "steps_per_print": 10,
        "comms_logger": {"enabled": False},
        "zero_optimization": {
            "stage": 0,
            "overlap_comm": False,
            "reduce_bucket_size": 5e7,
            "offload_optimizer": {"device": "none", "pin_memory": False},
            "offload_param": {"device": "none"},
        },
    }
    merged = add(theirs, tmp_path)
    changed = {"steps_per_print": 10, "comms_logger": {"enabled": False}}
    zero = {
        "overlap_comm": False,
        "reduce_bucket_size": 5e7,
        "offload_optimizer": {"device": "none", "pin_memory": False},
    }
    assert merged == ours() | changed | {"zero_optimization": ours()["zero_optimization"] | zero}


def test_the_stage_asked_for_and_the_stage_that_runs_both_agree(tmp_path: Path) -> None:
    for precision, stage, runs in (("fp32", 0, 1), ("bf16", 1, 2), ("bf16", 2, 2), ("fp32", 3, 3)):
        merged = add(
            {"zero_optimization": {"stage": stage}}, tmp_path, precision=precision, zero_stage=runs
        )
        assert merged["zero_optimization"]["stage"] == runs


def test_timer_that_waits_for_the_device_runs_only_when_asked_for(tmp_path: Path) -> None:
    for settings, enabled in (
        (ours(), False),
        (add({"steps_per_print": 10}, tmp_path), False),
        (add({"timers": {"throughput": {"enabled": True, "synchronized": False}}}, tmp_path), True),
    ):
        assert DeepSpeedConfig(settings).timers_config.enabled is enabled


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train_batch_size": 32}, "train_batch_size: got 32, here it is 16; use --batch-size"),
        (
            {"gradient_accumulation_steps": 1},
            "gradient_accumulation_steps: got 1, here it is 4; use --micro-batch",
        ),
        ({"gradient_clipping": 0.5}, "got 0.5, here it is 1.0; use --clip-grad"),
        ({"bf16": {"enabled": True}}, "bf16.enabled: got True, here it is False; use --precision"),
        ({"bf16": True}, "bf16: got True, here it is .*; use --precision"),
        ({"fp16": {"enabled": True}}, "fp16: got .*; use --precision bf16"),
        ({"optimizer": {"type": "Adam"}}, "optimizer: got .*; AdamW is what is built: use --lr"),
        ({"scheduler": {"type": "WarmupLR"}}, "use --lr, --warmup-epochs"),
        ({"communication_data_type": "bf16"}, "gradients are always summed in fp32"),
        (
            {"data_types": {"grad_accum_dtype": "bf16"}},
            "data_types.grad_accum_dtype: got 'bf16', here it is 'fp32'",
        ),
        (
            {"zero_optimization": {"stage": 2}},
            "zero_optimization.stage: got 2, here it is 1; use --zero-stage",
        ),
        ({"zero_optimization": True}, "zero_optimization: got True"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
            "here it is 'none'; use --offload-optimizer",
        ),
        ({"zero_optimization": {"offload_param": {"device": "cpu"}}}, "weights stay on the device"),
        ({"zero_optimization": {"memory_efficient_linear": True}}, "got True, here it is False"),
        (
            {"zero_optimization": {"reduce_bucket": 1}},
            "reduce_bucket: got 1; allowed here are .*reduce_bucket_size",
        ),
        (
            {"zero_optimization": {"zero_quantized_weights": True}},
            "zero_quantized_weights: got True; allowed here are",
        ),
        ({"stepsperprint": 1}, "stepsperprint: got 1; allowed here are steps_per_print$"),
        (
            {"zero_optimization": {"reduce_bucket_size": -1}},
            "reduce_bucket_size: got -1: Input should be greater than 0",
        ),
        (
            {"zero_optimization": {"overlap_comm": "often"}},
            "overlap_comm: got 'often': Input should be a valid boolean",
        ),
        ({"tensorboard": {"enabld": True}}, "enabld: got True: Extra inputs are not permitted"),
        ({"a\nb": "x\n" * 9000}, r"'a\\nb': got 'x\\nx"),
        ({"flops_profiler": 3}, "DeepSpeed refuses it"),
    ],
)
def test_conflicts_and_unknown_fields_are_named_in_one_line(
    values: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        add(values, tmp_path)
    assert str(error.value).startswith(
        f"--deepspeed-config: {tmp_path}/ds.json: "
    ) and "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not plain JSON"),
        ("", "not plain JSON"),
        ("// a comment\n{}", "not plain JSON"),
        ('{"dump_state": true, "dump_state": false}', "'dump_state' is there 2 times"),
        ('{"gradient_clipping": NaN}', "NaN is no number"),
        ("[" * 60000, "not plain JSON"),
        ("[1]", "got list, allowed is an object"),
        ('{"a": "' + MAX_BYTES * "a" + '"}', "bytes, allowed are 65536"),
        ("\x00\xff", "not plain JSON"),
    ],
)
def test_files_that_are_not_small_plain_json_are_refused_in_one_line(
    text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        add(text, tmp_path)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.json", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"--deepspeed-config: no file {path}"):
            add_file(ours(), str(path))


def test_deepspeed_knows_every_field_that_is_free() -> None:
    named = {
        value
        for name, value in vars(constants).items()
        if name.isupper() and isinstance(value, str)
    }
    models = {
        *(
            "zero_optimization",
            "activation_checkpointing",
            "comms_logger",
            "flops_profiler",
            "timers",
        ),
        *("csv_monitor", "tensorboard", "wandb"),
    }
    assert FREE[""] <= named | models
    for section, model in (
        ("zero_optimization", DeepSpeedZeroConfig),
        ("zero_optimization.offload_optimizer", DeepSpeedZeroOffloadOptimizerConfig),
        ("timers.throughput", DeepSpeedThroughputTimerConfig),
    ):
        aliases = {field.alias for field in model.model_fields.values()}
        assert FREE[section] <= aliases | set(model.model_fields)


def test_the_tests_of_zero_try_every_free_field_of_it() -> None:
    tried = set().union(*(fields["zero_optimization"] for fields in OWN_FIELDS.values()))
    assert tried | {"offload_optimizer"} == FREE["zero_optimization"]
