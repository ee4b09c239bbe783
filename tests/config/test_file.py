"""Config files: read as plain values, checked by field, and older ones in today's sections."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from fastdeit.commands.runs.replay import replay_command
from fastdeit.config.cli import parse_config
from fastdeit.config.file import MOVED, config_from_dict, read_config_file
from fastdeit.config.schema import Config
from fastdeit.distributed.world import init_distributed
from fastdeit.run.identity import check_same_settings
from fastdeit.storage.run_folder import RunFolder
from tests.support.cache_runs import Setting


def parse(*argv: str) -> Config:
    return parse_config(argv, "test")[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {epoch: 3}", r"a field must be one of epochs, .* \(got 'epoch'\)"),
        ("speed: {}", r"a section must be one of data, .* \(got 'speed'\)"),
        ("optim: {epochs: many}", r"epochs must be int \(got 'many'\)"),
        ("optim: {epochs: true}", r"epochs must be int \(got True\)"),
        ("optim: {lr: true}", r"lr must be float \(got True\)"),
        ("data: {mean: [0.5, true, 0.5]}", r"mean must be tuple\[float, float, float\] \(got "),
        ("optim: {model_ema: 1}", r"model_ema must be bool \(got 1\)"),
        ("- 1", r"must be a mapping of sections \(got list\)"),
        ("optim: 3", "section 'optim' must be a mapping of fields"),
        ("optim: {epochs: 0}", "--epochs must be 1 or more"),
        ("a: [", "not YAML"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
        ("run: {seed: 010}", r"seed must be int \(got '010'\)"),
        ("run: {seed: 1:30}", r"seed must be int \(got '1:30'\)"),
        ("run: {seed: 1e2}", r"seed must be int \(got '1e2'\)"),
        ("optim: {model_ema: 'maybe'}", r"model_ema must be bool \(got 'maybe'\)"),
        ("optim: {lr: 1e-3x}", r"lr must be float \(got '1e-3x'\)"),
        ("run: {save_steps: 2}\ncheckpoint: {save_steps: 3}", "save_steps is in both run and"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        parse("--config", str(file))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("optim: {lr: 1e-3}", 0.001),
        ("optim: {lr: 5.E-4}", 0.0005),
        ("optim: {lr: 2}", 2),
        ("run: {compile: off}", "off"),
        ("run: {time_limit: 1:30:00}", "1:30:00"),
        ("run: {time_limit: 2-0}", "2-0"),
        ("run: {output_dir: 2024-01-01}", "2024-01-01"),
        ("run: {output_dir: 'no'}", "no"),
        ("run: {output_dir: ~/run}", os.path.expanduser("~/run")),
        ("run: {grad_checkpointing: on}", True),
        ("run: {grad_checkpointing: No}", False),
    ],
)
def test_a_value_means_what_its_flag_takes(text: str, value: Any, tmp_path: Path) -> None:
    """PyYAML alone reads YAML 1.1: 1e-3 is a text, off is False, 1:30:00 is 5400."""
    file = tmp_path / "config.yaml"
    file.write_text(text)
    section, fields = next(iter(yaml.safe_load(text).items()))
    read = config_from_dict(Config(), read_config_file(file, "--config"), "x")
    assert getattr(getattr(read, section), next(iter(fields))) == value


@pytest.mark.parametrize(
    "name", ["1e3", "1.0e5", "010", "0x1f", "1_000", "1:30", "off", "y", "~", "", "=", "2024-01-01"]
)
def test_any_text_is_read_as_it_was_written(name: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    settings = Config().replace(run={"output_dir": name}).to_dict()
    file.write_text(yaml.safe_dump(settings))
    assert read_config_file(file, "--config") == settings


@pytest.mark.parametrize("value", [True, 1.0, "1", [1], 4])
def test_a_choice_must_have_the_type_of_the_choice(value: Any) -> None:
    """In Python, True == 1 == 1.0."""
    assert config_from_dict(Config(), {"run": {"zero_stage": 1}}, "x") == Config()
    with pytest.raises(ValueError, match=r"x: zero_stage must be Literal\[0, 1, 2, 3\]"):
        config_from_dict(Config(), {"run": {"zero_stage": value}}, "x")


def test_partial_dicts_keep_the_rest() -> None:
    assert config_from_dict(Config(), {"optim": {"lr": 1}}, "x").optim.lr == 1
    assert config_from_dict(Config(), {}, "x") == Config()


def _older(config: Config) -> dict[str, dict[str, Any]]:
    """Return the sections as an older version wrote them."""
    sections = config.to_dict()
    for (old, name), new in MOVED.items():
        sections[old][name] = sections[new].pop(name)
    return {section: fields for section, fields in sections.items() if fields}


def test_a_config_of_an_older_run_is_read_and_is_the_same_run(tmp_path: Path) -> None:
    config = Config().replace(
        checkpoint={"save_steps": 5, "keep_checkpoints": 4},
        health={"max_bad_steps": 1, "max_rollbacks": 7, "checksum_steps": 9},
        run={"seed": 3, "output_dir": str(tmp_path)},
    )
    older = _older(config)
    assert "checkpoint" not in older and "health" not in older
    assert older["run"]["checksum_steps"] == 9
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(older))
    assert read_config_file(file, "--config") == config.to_dict()
    assert parse("--config", str(file)) == config
    check_same_settings(config, RunFolder(tmp_path))
    with pytest.raises(ValueError, match="--seed was 3, now 4"):
        check_same_settings(config.replace(run={"seed": 4}), RunFolder(tmp_path))


def test_an_older_run_resumes_and_is_replayed(
    tmp_path: Path,
) -> None:
    init_distributed()
    setting = Setting(tmp_path)
    folder, flags = tmp_path / "run", [*setting.taught, "--save-steps", "2"]
    assert setting.train(folder, *flags, "--stop-after-steps", "2", epochs=1) == 0
    file = folder / "config.yaml"
    config = parse("--config", str(file))
    assert config.checkpoint.save_steps == 2
    file.write_text(yaml.safe_dump(_older(config)))
    assert replay_command([str(folder), "--step", "1"]) == 0
    assert setting.train(folder, *flags, epochs=1) == 0
    assert (folder / "model.safetensors").is_file()
    assert "checkpoint" in yaml.safe_load(file.read_text())


def test_moved_fields_exist_where_they_moved_to() -> None:
    sections = Config().to_dict()
    for (old, name), new in MOVED.items():
        assert name in sections[new] and name not in sections[old]
