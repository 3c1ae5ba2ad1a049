"""Named starting points for a configuration, and single values set by name over them.

docs/training.md explains the values of `small`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from dino_extract.errors import ConfigError
from dino_extract.finetuning.config import FinetuneConfig, HeadConfig
from dino_extract.names import quoted
from dino_extract.options import built, checked, checked_values, require_option

Preset = Literal["small", "short", "long"]
Config = TypeVar("Config")

LOOKS_PER_RUN = 20
MAX_CHECKPOINT_STEPS = 1000
RENAMED = {"batch_size": "batch", "num_workers": "workers", "evaluate": "eval"}  # options of earlier configurations

# In steps, and a share of the run where they are left open.
LENGTHS = (
    "head_warmup_steps",
    "checkpoint_steps",
    "monitor.every_steps",
    "schedule.warmup_steps",
    "schedule.warmup_teacher_temp_steps",
    "schedule.freeze_last_layer_steps",
)
# What distinguishes a preset from the defaults of the classes; "adapt" starts from trained weights, "scratch" from random ones.
_SMALL_HEAD = {"objective.dino_head.n_prototypes": 4096, "objective.dino_head.hidden_dim": 1024}
_PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    ("small", "adapt"): {
        **_SMALL_HEAD,
        "epochs": 20,
        "drop_path_rate": 0.1,
        "objective.anchor_loss_weight": 1.0,
        "optim.base_lr": 2e-4,
        "optim.layerwise_decay": 0.8,
        "schedule.weight_decay_end": 0.04,
        "schedule.momentum_teacher": 0.998,
        "schedule.teacher_temp": 0.05,
    },
    ("small", "scratch"): {
        **_SMALL_HEAD,
        "epochs": 100,
        "layerscale": 0.1,
        "objective.dino_head.bottleneck_dim": 64,
        "objective.student_temp": 0.05,
        "objective.koleo_loss_weight": 0.02,
        "optim.base_lr": 2e-3,
        "schedule.warmup_teacher_temp": 0.015,
        "schedule.teacher_temp": 0.015,
    },
    ("short", "adapt"): {"epochs": 100, "drop_path_rate": 0.3, "head_warmup_steps": 12_500, "objective.anchor_loss_weight": 0.1},
    ("short", "scratch"): {"epochs": 100, "drop_path_rate": 0.3},
    ("long", "scratch"): {
        "epochs": 500,
        "batch": 32,
        "drop_path_rate": 0.4,
        "objective.dino_head": HeadConfig(n_prototypes=131072, bottleneck_dim=384),
        "objective.ibot_head": HeadConfig(n_prototypes=131072),
        "optim.base_lr": 2e-4,
        "optim.layerwise_decay": 1.0,
        "schedule.weight_decay_end": 0.2,
        "schedule.momentum_teacher": 0.994,
        "schedule.warmup_teacher_temp_steps": 37_500,
        "schedule.freeze_last_layer_steps": 1_250,
    },
}
_PRESETS["long", "adapt"] = {**_PRESETS["long", "scratch"], "head_warmup_steps": 12_500, "objective.anchor_loss_weight": 0.1}


def preset_config(name: str, *, from_scratch: bool) -> FinetuneConfig:
    """The configuration of a preset.

    Args:
        name: `small` for up to some 100,000 images on one machine, `short` and `long` for the official recipes of that name.
        from_scratch: start from random weights instead of trained ones.

    Raises:
        ConfigError: there is no such preset.
    """
    checked("preset", Preset, name)
    config = replace(FinetuneConfig(), preset=name, from_scratch=from_scratch)
    return with_values(config, _PRESETS[name, "scratch" if from_scratch else "adapt"])


def configure(values: Mapping[str, Any], *, preset: Preset | None = None, config: str | os.PathLike[str] | None = None) -> FinetuneConfig:
    """The configuration of a run: that of a preset, or of another run, with values over it.

    Args:
        values: by dotted name, or as mappings for groups; `auto` for `batch` is the value of the preset.
        preset: by default `small`.
        config: path of a run's `config.json`, instead of a preset.

    Raises:
        ConfigError: with what to change.
    """
    if config is not None and preset is not None:
        raise ConfigError("give either `preset` or `config`, not both: the file has all values that a preset sets")
    values = {name: value for name, value in _flat(values).items() if (name, value) != ("batch", "auto")}
    if config is None:
        base = preset_config("small" if preset is None else preset, from_scratch=values.get("from_scratch") is True)
    else:
        base = read_config(Path(config))
    if {"epochs", "steps"} & values.keys():
        base = with_open_lengths(base)
    complete = with_values(base, values)
    _require_places(complete)
    check(complete)
    return complete


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """The configuration with values set by their dotted names, such as `{"optim.base_lr": 1e-4}`.

    Raises:
        ConfigError: a name that is not there, or a value of the wrong type.
    """
    for name, value in _flat(values).items():
        config = _with_value(config, name.split("."), value, name)
    return config


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """The values of `--set NAME=VALUE` arguments; values are JSON, or else text.

    Raises:
        ConfigError: an argument without `=`.
    """
    values = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"`--set` takes NAME=VALUE, got `{setting}`", hint="for example `--set optim.base_lr=1e-4`")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values


def with_lengths(config: FinetuneConfig, steps: int) -> FinetuneConfig:
    """The configuration of a run of `steps`, with every length that is still open as a number."""
    warmup = config.head_warmup_steps
    if warmup is None:
        is_known = config.keep_heads or (config.from_scratch and config.distill is None)
        warmup = 0 if is_known else steps // 10
    main = steps - (0 if config.distill else warmup)
    every = max(1, steps // LOOKS_PER_RUN) if config.monitor.every_steps is None else config.monitor.every_steps
    return replace(
        config,
        steps=steps,
        head_warmup_steps=warmup,
        checkpoint_steps=min(every, MAX_CHECKPOINT_STEPS) if config.checkpoint_steps is None else config.checkpoint_steps,
        schedule=config.schedule.resolved(main),
        monitor=replace(config.monitor, every_steps=every),
    )


def with_open_lengths(config: FinetuneConfig) -> FinetuneConfig:
    """The configuration for a run of another length: `steps` open, and every length that is the share of them which it has by itself."""
    if config.steps is None:
        return config
    complete = with_lengths(config, config.steps)
    derived = [name for name in LENGTHS if with_lengths(with_values(config, {name: None}), config.steps) == complete]
    return with_values(config, dict.fromkeys(["steps", *derived]))


def check(config: FinetuneConfig) -> None:
    """Refuse values that cannot be or contradict each other; lengths that are still open are not looked at.

    Raises:
        ConfigError: with what to change.
    """
    steps, warmup = config.steps, config.head_warmup_steps
    if steps is not None and warmup is not None and warmup >= steps:
        raise ConfigError(
            f"`head_warmup_steps` must be less than the {steps} steps of the run, got {warmup}",
            hint=f"for example a tenth: `--set head_warmup_steps={steps // 10}`",
        )
    if config.weights is not None and config.from_scratch:
        raise ConfigError("give either `weights` or `from_scratch`, not both")
    if config.keep_heads and config.weights is None:
        raise ConfigError("`keep_heads` needs `weights`, the run whose heads are kept", hint="`--weights RUN/ --keep-heads`")
    if config.objective.anchor_loss_weight and config.from_scratch:
        raise ConfigError("a run from scratch has no starting features to keep", hint="`--set objective.anchor_loss_weight=0`")


def _require_places(config: FinetuneConfig) -> None:
    missing = [name for name, given in (("images", config.sources), ("a folder for the run", config.output)) if not given]
    if missing:
        example = f"dino-extract finetune {quoted_sources(config.sources) or 'photos/'} -o {quoted(config.output or 'run/')}"
        raise ConfigError(f"missing: {' and '.join(missing)}", hint=f"for example `{example}`")


def quoted_sources(sources: Sequence[str]) -> str:
    """Sources as they are typed; those after the second become `...`."""
    return " ".join([*map(quoted, sources[:2]), *(["..."] if len(sources) > 2 else [])])


def to_json(config: FinetuneConfig) -> str:
    """The configuration as JSON text that `from_json` reads back."""
    return json.dumps(asdict(config), indent=2) + "\n"


def read_config(path: Path) -> FinetuneConfig:
    """The configuration in a run's `config.json`.

    Raises:
        ConfigError: it cannot be read, or is not such a file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"`{path}` cannot be read as the configuration of a run: {error}") from error
    return from_json(text)


def from_json(text: str) -> FinetuneConfig:
    """The configuration in the text of a `config.json`.

    Raises:
        ConfigError: the text is not such a file.
    """
    try:
        tree = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"`config.json` is not JSON: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"`config.json` must be a JSON object, got `{tree}`")
    return built(FinetuneConfig, _with_todays_names(tree))


def differences(one: FinetuneConfig, other: FinetuneConfig) -> dict[str, tuple[Any, Any]]:
    """The dotted names whose values differ, with both values."""
    first, second = _flat(asdict(one)), _flat(asdict(other))
    return {name: (first.get(name), second.get(name)) for name in first | second if first.get(name) != second.get(name)}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value})
    return flat


def _with_value(config: Any, path: list[str], value: Any, name: str) -> Any:
    prefix, known = name.removesuffix(".".join(path)), [entry.name for entry in fields(config)]
    if path[0] not in known:
        require_option(name, [prefix + each for each in known], _flat(asdict(FinetuneConfig())))
    if len(path) > 1:
        inner = HeadConfig() if name.startswith("objective.ibot_head.") else None  # the only group that may be absent
        inner = getattr(config, path[0]) or inner
        if not is_dataclass(inner):
            require_option(name, _flat(asdict(FinetuneConfig())))
        value = _with_value(inner, path[1:], value, name)
    return replace(config, **checked_values(type(config), {path[0]: value}, prefix))


def _with_todays_names(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the names that its options have today: runs that were begun under the old ones can be continued."""
    today = {RENAMED.get(name, name): value for name, value in tree.items()}
    if isinstance(today.get("compile"), bool):
        today["compile"] = "on" if today["compile"] else "off"
    return today
