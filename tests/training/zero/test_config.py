"""DeepSpeed's settings, and a user's own file: the fields that it may set and how others fail."""

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
from fastdeit.training.zero.config import ALLOWED, MAX_BYTES, add_user_file, deepspeed_config
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
    return add_user_file(ours(**changes), str(file))


def test_allowed_fields_are_added_and_equal_values_accepted(tmp_path: Path) -> None:
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


def test_requested_stage_and_running_stage_are_both_accepted(tmp_path: Path) -> None:
    for precision, stage, runs in (("fp32", 0, 1), ("bf16", 1, 2), ("bf16", 2, 2), ("fp32", 3, 3)):
        merged = add(
            {"zero_optimization": {"stage": stage}}, tmp_path, precision=precision, zero_stage=runs
        )
        assert merged["zero_optimization"]["stage"] == runs


def test_throughput_timer_runs_only_on_request(tmp_path: Path) -> None:
    for settings, enabled in (
        (ours(), False),
        (add({"steps_per_print": 10}, tmp_path), False),
        (add({"timers": {"throughput": {"enabled": True, "synchronized": False}}}, tmp_path), True),
    ):
        assert DeepSpeedConfig(settings).timers_config.enabled is enabled


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train_batch_size": 32}, r"train_batch_size must be 16 \(got 32\); use --batch-size"),
        (
            {"gradient_accumulation_steps": 1},
            r"gradient_accumulation_steps must be 4 \(got 1\); use --micro-batch",
        ),
        ({"gradient_clipping": 0.5}, r"must be 1.0 \(got 0.5\); use --clip-grad"),
        ({"bf16": {"enabled": True}}, r"bf16.enabled must be False \(got True\); use --precision"),
        ({"bf16": True}, r"bf16 must be .* \(got True\); use --precision"),
        ({"fp16": {"enabled": True}}, r"fp16 is not allowed \(got .*\); use --precision bf16"),
        (
            {"optimizer": {"type": "Adam"}},
            r"optimizer is not allowed \(got .*\); use --opt, --lr",
        ),
        ({"scheduler": {"type": "WarmupLR"}}, "use --lr, --warmup-epochs"),
        ({"communication_data_type": "bf16"}, "gradients are always summed in fp32"),
        (
            {"data_types": {"grad_accum_dtype": "bf16"}},
            r"data_types.grad_accum_dtype must be 'fp32' \(got 'bf16'\)",
        ),
        (
            {"zero_optimization": {"stage": 2}},
            r"zero_optimization.stage must be 1 \(got 2\); use --zero-stage",
        ),
        ({"zero_optimization": True}, r"zero_optimization must be .* \(got True\)"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
            r"must be 'none' \(got 'cpu'\); use --offload-optimizer",
        ),
        ({"zero_optimization": {"offload_param": {"device": "cpu"}}}, "weights stay on the device"),
        ({"zero_optimization": {"memory_efficient_linear": True}}, r"must be False \(got True\)"),
        (
            {"zero_optimization": {"reduce_bucket": 1}},
            r"reduce_bucket is not allowed \(got 1\); allowed here: .*reduce_bucket_size",
        ),
        (
            {"zero_optimization": {"zero_quantized_weights": True}},
            r"zero_quantized_weights is not allowed \(got True\); allowed here: ",
        ),
        (
            {"stepsperprint": 1},
            r"stepsperprint is not allowed \(got 1\); allowed here: steps_per_print$",
        ),
        (
            {"zero_optimization": {"reduce_bucket_size": -1}},
            r"reduce_bucket_size: Input should be greater than 0 \(got -1\)",
        ),
        (
            {"zero_optimization": {"overlap_comm": "often"}},
            r"overlap_comm: Input should be a valid boolean.* \(got 'often'\)",
        ),
        ({"tensorboard": {"enabld": True}}, r"enabld: Extra inputs are not permitted \(got True\)"),
        ({"a\nb": "x\n" * 9000}, r"'a\\nb' is not allowed \(got 'x\\nx"),
        ({"flops_profiler": 3}, "DeepSpeed refuses it"),
    ],
)
def test_conflicts_and_unknown_fields_fail_with_one_line(
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
        ("{", "must be plain JSON"),
        ("", "must be plain JSON"),
        ("// a comment\n{}", "must be plain JSON"),
        ('{"dump_state": true, "dump_state": false}', "'dump_state' appears more than once"),
        ('{"gradient_clipping": NaN}', "NaN is not a number"),
        ("[" * 60000, "must be plain JSON"),
        ("[1]", r"must be a JSON object \(got list\)"),
        ('{"a": "' + MAX_BYTES * "a" + '"}', "65,536"),
        ("\x00\xff", "must be plain JSON"),
    ],
)
def test_file_that_is_not_small_plain_json_fails_with_one_line(
    text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        add(text, tmp_path)
    assert "\n" not in str(error.value)


def test_gradient_bucket_takes_200_mb_in_fp32() -> None:
    assert 4 * ours()["zero_optimization"]["reduce_bucket_size"] == 200_000_000


def test_missing_file_fails(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.json", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"--deepspeed-config: {path}: no such file"):
            add_user_file(ours(), str(path))


def test_deepspeed_has_every_allowed_field() -> None:
    named = {
        value
        for name, value in vars(constants).items()
        if name.isupper() and isinstance(value, str)
    }
    sections = ["zero_optimization", "activation_checkpointing", "comms_logger", "flops_profiler"]
    models = {*sections, "timers", "csv_monitor", "tensorboard", "wandb"}
    assert set(ALLOWED[""]) <= named | models
    for section, model in (
        ("zero_optimization", DeepSpeedZeroConfig),
        ("zero_optimization.offload_optimizer", DeepSpeedZeroOffloadOptimizerConfig),
        ("timers.throughput", DeepSpeedThroughputTimerConfig),
    ):
        aliases = {field.alias for field in model.model_fields.values()}
        assert set(ALLOWED[section]) <= aliases | set(model.model_fields)


def test_zero_tests_try_every_allowed_field() -> None:
    tried = set().union(*(fields["zero_optimization"] for fields in OWN_FIELDS.values()))
    assert tried | {"offload_optimizer"} == set(ALLOWED["zero_optimization"])
