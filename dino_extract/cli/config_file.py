"""`--config FILE.toml`: options of a command in a file, as they would be typed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dino_extract.cli.usage import UsageError, nearest, option_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take the values of a file where neither the command line nor the environment gives one; the callback of `--config`.

    Raises:
        UsageError: the file cannot be read, is not TOML, or has a key that is not an option of the command.
    """
    if path is None or context.resilient_parsing:
        return path
    parameters = {option_of(each).strip("-") if each.param_type_name == "option" else each.name: each for each in context.command.params}
    parameters.pop("config")
    context.default_map = {}
    for key, value in _toml(path).items():
        name = key.replace("_", "-")
        if name not in parameters:
            near = nearest(name, list(parameters))
            hint = f"did you mean `{near}`?" if near else f"keys are the options of `{context.command_path}` without dashes"
            raise UsageError(f"configuration `{path}`: `{key}` is not an option", hint=hint)
        parameter: Any = parameters[name]
        context.default_map[parameter.name] = _typed(value, takes_several=parameter.multiple or parameter.nargs != 1)
    return path


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"configuration `{path}` cannot be read: {error.strerror}") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise UsageError(f"configuration `{path}` is not TOML: {error}", hint='for example a line `model = "vitb14"`') from error


def _typed(value: Any, *, takes_several: bool) -> Any:
    """A value as the command line would have it: text, a list of texts where an option may be repeated, or a bool."""
    if isinstance(value, bool):
        return value
    words = [str(each) for each in value] if isinstance(value, list) else [str(value)]
    return words if takes_several else ",".join(words)


ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE.toml",
        is_eager=True,
        callback=read_config,
        help='Read options from this file: `model = "vitb14"`. The command line and the environment win.',
    ),
]
