"""Named starting points for a configuration, and single values set by name over them.

Why the values of `small` are what they are is told in docs/training.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from dino_extract.errors import ConfigError
from dino_extract.finetune.config import FinetuneConfig, HeadConfig

Preset = Literal["small", "short", "long"]
Config = TypeVar("Config")

LOOKS_PER_RUN = 20
MAX_CHECKPOINT_STEPS = 1000

# In steps, and a share of the run where they are left open.
LENGTHS = (
    "head_warmup_steps",
    "checkpoint_steps",
    "monitor.every_steps",
    "schedule.warmup_steps",
    "schedule.warmup_teacher_temp_steps",
    "schedule.freeze_last_layer_steps",
)
# The least that a number may be.
_LEAST = {
    **dict.fromkeys(LENGTHS, 0),
    **dict.fromkeys(("steps", "batch_size", "accumulation", "checkpoint_steps", "log_steps", "monitor.every_steps"), 1),
    **dict.fromkeys(("crops.global_crops_size", "crops.local_crops_size", "monitor.eval_images"), 1),
    **dict.fromkeys(("seed", "num_workers", "crops.local_crops_number", "crops.decode_size", "monitor.images"), 0),
}
_SHARES = ("crops.global_crops_scale", "crops.local_crops_scale", "crops.mask_ratio_min_max")  # from one to another

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
        "batch_size": 32,
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


def preset(name: str, *, from_scratch: bool) -> FinetuneConfig:
    """The configuration of a preset.

    Args:
        name: `small` for up to some 100,000 images on one machine, `short` and `long` for the official recipes of that name.
        from_scratch: start from random weights instead of trained ones.

    Raises:
        ConfigError: there is no such preset.
    """
    if name not in get_args(Preset):
        raise ConfigError(f"`--preset` takes {', '.join(get_args(Preset))}, got `{name}`")
    config = replace(FinetuneConfig(), preset=name, from_scratch=from_scratch)
    return with_values(config, _PRESETS[name, "scratch" if from_scratch else "adapt"])


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """The configuration with values set by their dotted names, such as `{"optim.base_lr": 1e-4}`.

    Raises:
        ConfigError: a name that is not there, or a value of the wrong type.
    """
    for name, value in values.items():
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
    _check_numbers(config)
    steps, warmup = config.steps, config.head_warmup_steps
    if steps is not None and warmup is not None and warmup >= steps:
        raise ConfigError(
            f"head_warmup_steps must be less than the {steps} steps of the run, got {warmup}",
            hint=f"for example a tenth: `--set head_warmup_steps={steps // 10}`",
        )
    if config.weights is not None and config.from_scratch:
        raise ConfigError("give either `--weights` or `--from-scratch`, not both")
    if config.keep_heads and config.weights is None:
        raise ConfigError("`--keep-heads` needs the run whose heads are to be kept", hint="`--weights RUN/ --keep-heads`")
    if config.objective.anchor_loss_weight and config.from_scratch:
        raise ConfigError("a run from scratch has no starting features to keep", hint="`--set objective.anchor_loss_weight=0`")


def _check_numbers(config: FinetuneConfig) -> None:
    values = _flat(asdict(config))
    for name, value in values.items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise ConfigError(f"`{name}` must be a finite number, got {number}")
    for name, least in _LEAST.items():
        if values[name] is not None and values[name] < least:
            raise ConfigError(f"`{name}` must be at least {least}, got {values[name]}")
    if config.epochs <= 0:
        raise ConfigError(f"`epochs` must be above 0, got {config.epochs:g}")
    for name in _SHARES:
        low, high = values[name]
        if not 0 <= low <= high <= 1:
            raise ConfigError(f"`{name}` goes from one share to a larger one, 0 to 1, got {low:g} to {high:g}")


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
        config: FinetuneConfig = _convert(FinetuneConfig, json.loads(text), "config.json")
    except ValueError as error:
        raise ConfigError(f"`config.json` is not JSON: {error}") from error
    return config


def differences(one: FinetuneConfig, other: FinetuneConfig) -> dict[str, tuple[Any, Any]]:
    """The dotted names whose values differ, with both values."""
    first, second = _flat(asdict(one)), _flat(asdict(other))
    return {name: (first.get(name), second.get(name)) for name in first | second if first.get(name) != second.get(name)}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value})
    return flat


def _with_value(config: Config, path: list[str], value: Any, name: str) -> Config:
    hints = get_type_hints(type(config))
    if path[0] not in hints:
        prefix = name.removesuffix(".".join(path))
        known = [prefix + hint for hint in hints]
        close = get_close_matches(name, [*known, *_flat(asdict(FinetuneConfig()))], n=1)
        raise ConfigError(
            f"there is no setting `{name}` (there are {', '.join(known)})", hint=f"did you mean `{close[0]}`?" if close else None
        )
    if len(path) > 1:
        inner = getattr(config, path[0])
        if inner is None:
            inner = HeadConfig()  # the only settings that may be absent
        value = _with_value(inner, path[1:], value, name)
    return replace(config, **{path[0]: _convert(hints[path[0]], value, name)})  # type: ignore[type-var]


def _build(cls: type[Config], tree: Mapping[str, Any], name: str) -> Config:
    hints = get_type_hints(cls)
    if unknown := tree.keys() - hints.keys():
        raise ConfigError(f"there is no setting `{', '.join(sorted(unknown))}` in `{name}`")
    return cls(**{entry.name: _convert(hints[entry.name], tree[entry.name], entry.name) for entry in fields(cls) if entry.name in tree})  # type: ignore[arg-type]


def _convert(hint: Any, value: Any, name: str) -> Any:
    """A JSON value as what a field holds: lists as tuples, objects as their class, whole numbers where floats are wanted."""
    choices = get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)
    if value is None and NoneType in choices:
        return None
    (wanted,) = (choice for choice in choices if choice is not NoneType)
    origin = get_origin(wanted)
    if is_dataclass(wanted) and isinstance(wanted, type):
        if isinstance(value, Mapping):
            return _build(wanted, value, name)
        if isinstance(value, wanted):
            return value
    elif origin is tuple and isinstance(value, list | tuple):
        kinds = get_args(wanted)
        kinds = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
        if len(value) == len(kinds):
            return tuple(_convert(kind, one, name) for kind, one in zip(kinds, value, strict=True))
        raise ConfigError(f"`{name}` takes {len(kinds)} values, got {len(value)}: `{value}`")
    elif origin is Literal:
        if value in get_args(wanted):
            return value
        raise ConfigError(f"`{name}` takes {', '.join(map(str, get_args(wanted)))}, got `{value}`")
    elif wanted is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif isinstance(wanted, type) and isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool)):
        return value
    raise ConfigError(f"`{name}` takes {getattr(wanted, '__name__', wanted)}, got `{value}`")
