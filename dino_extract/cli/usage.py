"""What is said about a wrong command line: one sentence in our own words, with the nearest right name."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import typer
from typer.core import TyperOption

from dino_extract.errors import DinoExtractError, ExitCode

EXPECTED = {int: "a whole number", float: "a number", bool: "true or false"}


class UsageError(DinoExtractError):
    """The command line is wrong: an unknown option, a missing argument, or a value that an option does not take."""

    exit_code = ExitCode.USAGE


def or_list(words: list[str]) -> str:
    """Words as a choice in a sentence.

    >>> or_list(["crop", "squash", "pad"])
    'crop, squash or pad'
    """
    return " or ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def nearest(word: str, names: list[str]) -> str | None:
    """The name that somebody who typed `word` most probably meant, or None; dashes do not count."""
    bare = {name.strip("-"): name for name in names}
    found = difflib.get_close_matches(word.strip("-"), bare, n=1)
    return bare[found[0]] if found else None


def option_of(parameter: Any) -> str:
    """How an option is typed in full, or the name of an argument as the help shows it.

    Args:
        parameter: of a command of Typer.
    """
    if isinstance(parameter, TyperOption):
        return max(parameter.opts, key=len)
    return str(parameter.metavar or parameter.name.upper()).strip("[].")


def with_options(text: str, parameters: Mapping[str, str]) -> str:
    """The text with each parameter in backticks replaced by its option, and `name=value` by `--name value`.

    A value that somebody typed (`got ...`) stays as it is.

    >>> with_options("`top` must be at least 1, got `top`", {"top": "--top"})
    '`--top` must be at least 1, got `top`'
    >>> with_options("`compile=on` needs a compiler", {"compile": "--compile"})
    '`--compile on` needs a compiler'
    """

    def typed(found: re.Match[str]) -> str:
        name, value = found[1], found[2]
        if name not in parameters:
            return found[0]
        return f"`{parameters[name]}`" if value in (None, "True") else f"`{parameters[name]} {value}`"

    return re.sub(r"(?<!got )`(\w+)(?:=(\w+))?`", typed, text)


def parameters_of(command: Any) -> dict[str, str]:
    """The options of a command by the name of the parameter that the library uses."""
    options = [parameter for parameter in command.params if isinstance(parameter, TyperOption)]
    return {name: option_of(option) for option in options for name in (option.name, option_of(option).strip("-").replace("-", "_"))}


@contextlib.contextmanager
def in_our_words(context: typer.Context) -> Iterator[None]:
    """Errors of the command line as one of our sentences, and errors of the library with options instead of parameters."""
    try:
        yield
    except typer.TyperException as error:
        message, hint = _worded(error, getattr(error, "ctx", None) or context)
        raise UsageError(message, hint=hint) from error
    except UsageError:
        raise
    except DinoExtractError as error:
        parameters = parameters_of(context.command)
        error.message = with_options(error.message, parameters)
        error.hint = error.hint and with_options(error.hint, parameters)
        raise


def help_hint(context: typer.Context) -> str:
    """The hint that leads to the help of a command."""
    return f"`{context.command_path} --help` explains the command"


def _worded(error: typer.TyperException, context: typer.Context) -> tuple[str, str | None]:
    """The sentence and the hint. Typer's own classes of errors are private, so their attributes tell them apart."""
    option, parameter = getattr(error, "option_name", None), getattr(error, "param", None)
    if hasattr(error, "possibilities"):
        names = [name for each in context.command.get_params(context) for name in each.opts if name.startswith("--")]
        if near := nearest(str(option), names):
            return f"there is no option `{option}`; did you mean `{near}`?", None
        return f"`{context.command_path}` has no option `{option}`", help_hint(context)
    if option is not None:
        return f"`{option}` {'takes no value' if 'does not take' in error.message else 'needs a value'}", help_hint(context)
    if parameter is None:
        return _plain(error.message), help_hint(context)
    if type(error) is not typer.BadParameter:  # a `MissingParameter`
        return f"`{option_of(parameter)}` is missing", _example(context)
    return f"{_place(parameter, context)} {_expectation(error, parameter)}", None


def _example(context: typer.Context) -> str:
    """The first example of a command, else where its help is."""
    lines = (context.command.epilog or "").partition("Examples:")[2].split("\n")
    first = next((re.split(r"\s{2,}", line.strip())[0] for line in lines if line.strip().startswith(context.command_path)), None)
    return f"for example `{first}`" if first else help_hint(context)


def _plain(message: str) -> str:
    """A sentence of Typer's without a full stop, with its quotes as backticks."""
    extra = re.match(r"Got unexpected extra argument.*? \((.*)\)", message)
    if extra:
        return f"unexpected argument `{extra[1]}`"
    return message[:1].lower() + message[1:].rstrip(".").replace("'", "`")


def _place(parameter: Any, context: typer.Context) -> str:
    """Where the value of a parameter was given: the option, its environment variable, or its key in a configuration file."""
    source = context.get_parameter_source(parameter.name)
    if source is not None and source.name == "ENVIRONMENT":
        return f"`{parameter.envvar}` in the environment"
    if source is not None and source.name == "DEFAULT_MAP":
        return f"`{option_of(parameter).strip('-')}` in the file of `--config`"
    return f"`{option_of(parameter)}`"


def _expectation(error: typer.TyperException, parameter: Any) -> str:
    """What the value must be, and what it is."""
    if error.message.startswith("must be "):  # from a parser of ours
        return error.message
    found: dict[str, Any] = getattr(error.__cause__, "errors", lambda: [{}])()[0]
    kind, got = parameter.type_descriptor, found.get("input")
    if kind.choices is not None:
        expected = or_list([str(choice) for choice in kind.choices])
    elif found.get("type", "").startswith(("greater", "less")):
        limit = found["ctx"]
        expected = f"at least {limit['ge']}" if "ge" in limit else f"at most {limit['le']}" if "le" in limit else "in its range"
    elif kind.annotation in EXPECTED:
        expected = EXPECTED[kind.annotation]
    else:
        return f"cannot be used: {_plain(error.message)}"
    return f"must be {expected}, got `{got}`"
