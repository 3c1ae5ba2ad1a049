"""A configuration is complete, survives its JSON, and every value of it can be set by name."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from dino_extract.cli.finetune import finetune
from dino_extract.errors import ConfigError
from dino_extract.finetuning.config import FinetuneConfig
from dino_extract.finetuning.presets import (
    differences,
    from_json,
    parse_settings,
    preset_config,
    read_config,
    to_json,
    with_lengths,
    with_values,
)

ALL = [(name, from_scratch) for name in ("small", "short", "long") for from_scratch in (True, False)]


def asked(*arguments: str) -> FinetuneConfig:
    """The configuration that the command makes of its arguments."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(finetune)
    result = CliRunner().invoke(app, [*arguments, "--dry-run"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return from_json(result.stdout)


@pytest.mark.parametrize(("name", "from_scratch"), ALL)
def test_a_preset_survives_its_json(name: str, from_scratch: bool) -> None:
    """Writing and reading a preset gives the same configuration."""
    config = preset_config(name, from_scratch=from_scratch)

    assert from_json(to_json(config)) == config


def test_long_is_the_official_recipe_of_that_name() -> None:
    """The long preset has untied heads of 131072 prototypes, no layer-wise decay and half a million crops of warm-up."""
    config = preset_config("long", from_scratch=True)

    assert config.objective.dino_head.n_prototypes == 131072
    assert config.objective.ibot_head is not None
    assert (config.optim.base_lr, config.optim.layerwise_decay, config.schedule.momentum_teacher) == (2e-4, 1.0, 0.994)


def test_every_field_can_be_set_from_the_command_line() -> None:
    """`--set` with each dotted name and another value changes exactly that value."""
    config = preset_config("long", from_scratch=True)

    for name, value in _leaves(asdict(config)):
        other: Any = _other(name, value)
        changed = with_values(config, parse_settings([f"{name}={json.dumps(other)}"]))
        assert list(differences(config, changed)) == [name]


def _leaves(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    return [
        leaf
        for name, value in tree.items()
        for leaf in (_leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)])
    ]


def _other(name: str, value: Any) -> Any:
    choices = {"crops.blur": "released", "objective.centering": "centering", "dtype": "float32", "parallel": "fsdp", "compile": "on"}
    if name in choices:
        return choices[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, tuple | list):
        return ["a"] if name == "sources" else [0.2, 0.3]
    return "text" if isinstance(value, str) or name in ("weights", "distill", "eval") else 7


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optim.base=1", "`optim.base` is not an option, did you mean `optim.base_lr`?"),
        ("steps=many", "`steps` must be a whole number of at least 1, got `many`"),
        ("crops.blur=none", "`crops.blur` must be `nominal`, `released` or `off`, got `none`"),
        ("steps", "`--set` takes NAME=VALUE, got `steps`"),
        ("crops.global_crops_scale=[0.5]", "`crops.global_crops_scale` must be 2 numbers from 0 to 1, the smaller one first, got `[0.5]`"),
        (
            'crops.mask_ratio_min_max=["a", 1]',
            "`crops.mask_ratio_min_max` must be 2 numbers from 0 to 1, ",
        ),
    ],
)
def test_a_wrong_setting_is_named(setting: str, message: str) -> None:
    """An unknown name, a wrong type, a wrong choice and a missing value each have their sentence."""
    with pytest.raises(ConfigError, match=re.escape(message)):
        with_values(FinetuneConfig(), parse_settings([setting]))


@pytest.mark.parametrize(("name", "meant"), [("optim.lr", "optim.base_lr"), ("base_lr", "optim.base_lr"), ("batch_size", "batch")])
def test_the_nearest_setting_is_proposed(name: str, meant: str) -> None:
    """The error of a wrong name asks whether the right one was meant."""
    with pytest.raises(ConfigError) as refused:
        with_values(FinetuneConfig(), {name: 1})

    assert refused.value.message.endswith(f"did you mean `{meant}`?")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos"], "missing: a folder for the run"),
        (["-o", "run"], "missing: images"),
        (["photos", "-o", "run", "--keep-heads"], "`keep_heads` needs `weights`"),
        (["photos", "-o", "run", "--from-scratch", "--weights", "first"], "give either `weights` or `from_scratch`"),
        (["photos", "-o", "run", "--preset", "short", "--steps", "2"], "`head_warmup_steps` must be less than the 2 steps"),
        (["photos", "-o", "run", "--epochs", "nan"], "`epochs` must be a number above 0, got `nan`"),
        (["photos", "-o", "run", "--epochs", "-5"], "`epochs` must be a number above 0, got `-5.0`"),
        (["photos", "-o", "run", "--steps", "0"], "`steps` must be a whole number of at least 1, got `0`"),
        (["photos", "-o", "run", "--set", "log_steps=0"], "`log_steps` must be a whole number of at least 1, got `0`"),
        (["photos", "-o", "run", "--set", "seed=-1"], "`seed` must be a whole number of at least 0, got `-1`"),
        (["photos", "-o", "run", "--set", "monitor.every_steps=0"], "`monitor.every_steps` must be a whole number of at least 1, got `0`"),
        (["photos", "-o", "run", "--set", "optim.base_lr=Infinity"], "`optim.base_lr` must be a number, got `inf`"),
        (
            ["photos", "-o", "run", "--set", "crops.local_crops_scale=[0.5,0.1]"],
            "`crops.local_crops_scale` must be 2 numbers",
        ),
    ],
)
def test_a_dry_run_refuses_what_the_run_would_refuse(arguments: list[str], message: str) -> None:
    """What is missing or contradicts itself is told before a configuration is printed, with a hint where one helps."""
    with pytest.raises(ConfigError, match=re.escape(message)):
        asked(*arguments)


def test_the_command_puts_options_over_the_preset() -> None:
    """Options and settings win over the preset, and what is not given stays the preset's."""
    config = asked("photos", "-o", "run", "--from-scratch", "--model", "tiny", "--global-size", "98", "--set", "optim.base_lr=0.5")

    want = with_values(preset_config("small", from_scratch=True), {"sources": ("photos",), "output": "run", "model": "tiny"})
    assert config == with_values(want, {"crops.global_crops_size": 98, "optim.base_lr": 0.5})


def test_a_run_is_repeated_from_its_configuration(tmp_path: Any) -> None:
    """`--config` gives the same configuration with another folder."""
    config = with_values(preset_config("short", from_scratch=True), {"sources": ("a", "b"), "output": "run", "model": "tiny", "seed": 5})
    path = tmp_path / "config.json"
    path.write_text(to_json(config))

    again = asked("--config", str(path), "-o", "other")

    assert differences(config, again) == {"output": ("run", "other")}


def test_what_is_given_beside_a_configuration_wins(tmp_path: Any) -> None:
    """An option on the command line is not lost for one in the file, not even where it is the usual value."""
    config = with_values(preset_config("small", from_scratch=False), {"sources": ("a",), "output": "run", "model": "tiny", "seed": 5})
    path = tmp_path / "config.json"
    path.write_text(to_json(config))

    again = asked("--config", str(path), "--seed", "0", "--weights", "first", "--keep-heads", "--workers", "2", "--compile", "on")

    changed = {name: now for name, (_, now) in differences(config, again).items()}
    assert changed == {"seed": 0, "weights": "first", "keep_heads": True, "workers": 2, "compile": "on"}


@pytest.fixture
def a_run(tmp_path: Path) -> Path:
    """The `config.json` of a run of 1000 steps, with a learning rate's warm-up of its own and every other length left open."""
    config = with_values(preset_config("small", from_scratch=False), {"sources": ("a",), "output": "run", "schedule.warmup_steps": 7})
    path = tmp_path / "config.json"
    path.write_text(to_json(with_lengths(config, 1000)))
    return path


@pytest.mark.parametrize("arguments", [["--steps", "200"], ["--set", "steps=200"]])
def test_steps_beside_a_configuration_give_lengths_of_their_own(a_run: Path, arguments: list[str]) -> None:
    """Lengths that were shares of the run become shares of the new one, and the one that was chosen stays."""
    again = with_lengths(asked("--config", str(a_run), *arguments), 200)

    assert (again.steps, again.head_warmup_steps, again.monitor.every_steps, again.checkpoint_steps) == (200, 20, 10, 10)
    schedule = again.schedule  # of the 180 steps after the heads' warm-up
    assert (schedule.warmup_steps, schedule.warmup_teacher_temp_steps, schedule.freeze_last_layer_steps) == (7, 54, 2)


def test_epochs_beside_a_configuration_win_over_its_steps(a_run: Path) -> None:
    """The number of steps in the file is that of its own epochs, so it goes with them."""
    again = asked("--config", str(a_run), "--epochs", "3")

    assert (again.epochs, again.steps, again.head_warmup_steps, again.schedule.warmup_steps) == (3, None, None, 7)


def test_a_preset_beside_a_configuration_is_refused(a_run: Path) -> None:
    """The file has all values that a preset would set, so one of the two would be lost."""
    with pytest.raises(ConfigError, match="give either `preset` or `config`"):
        asked("--config", str(a_run), "--preset", "small")


def test_a_file_that_holds_no_configuration_is_refused() -> None:
    """JSON that is not an object is told from a configuration."""
    with pytest.raises(ConfigError, match=re.escape("`config.json` must be a JSON object, got `[1]`")):
        from_json("[1]")


def test_help_and_dry_run_do_not_load_torch() -> None:
    """The command's options are known without torch."""
    code = "import sys, dino_extract.cli.finetune; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_field_is_explained() -> None:
    """The docstring of every configuration class has a line for each of its fields."""
    for cls in {FinetuneConfig, *(type(getattr(FinetuneConfig(), entry.name)) for entry in fields(FinetuneConfig))}:
        if hasattr(cls, "__dataclass_fields__"):
            for entry in fields(cls):
                named = f"        {entry.name}:" in (cls.__doc__ or "")
                assert named or entry.name in ("crops", "objective", "optim", "schedule", "monitor"), f"{cls.__name__}.{entry.name}"


def test_a_picture_is_no_configuration(tmp_path: Path) -> None:
    """A file that is not text ends with its path."""
    (tmp_path / "config.json").write_bytes(b"\xff\xd8\xff")

    with pytest.raises(ConfigError, match=r"config\.json` cannot be read as the configuration of a run"):
        read_config(tmp_path / "config.json")
