"""How `--help` looks: plain text that fits 80 columns, examples first, and rarely needed options only with `--help-all`."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import textwrap
from collections.abc import Iterable
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from dino_extract.cli.usage import UsageError, help_hint, in_our_words, nearest, option_of
from dino_extract.errors import ExitCode

EXPERT = "Expert options"  # the panel that only `--help-all` shows
ALL = "--help-all"
MAX_WIDTH = 100
LEFT = 28  # columns of names before their descriptions, at most
NO_BREAK = "\0"  # stands for a space at which no line ends

Rows = dict[str, list[tuple[str, str]]]  # names and descriptions, by title

_METAVARS = {int: "N", float: "X", str: "TEXT"}


class Command(TyperCommand):
    """A command with our help and our words for mistakes."""

    def get_help(self, ctx: Any) -> str:
        """The help as text."""
        return help_page(self, ctx)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line; `--help-all` shows the help with every option."""
        if ALL in args:
            typer.echo(help_page(self, ctx, expert=True), color=ctx.color)
            raise typer.Exit
        _name_variables(self, ctx)
        with in_our_words(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with in_our_words(ctx):
            return super().invoke(ctx)


class Group(TyperGroup):
    """Commands with our help and our words for mistakes; `help COMMAND` is `COMMAND --help`."""

    def get_help(self, ctx: Any) -> str:
        """The help as text."""
        return help_page(self, ctx)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line up to the name of the command; without any, the help goes to stderr."""
        if not args and not ctx.resilient_parsing:
            typer.echo(ctx.get_help(), err=True, color=ctx.color)
            raise typer.Exit(ExitCode.USAGE)
        if args[:1] == ["help"]:
            args = [*(word for word in args if word != "help"), "--help"]
        with in_our_words(ctx):
            return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of a name.

        Raises:
            UsageError: there is none of this name.
        """
        name = args[0]
        if self.get_command(ctx, name) is None and not ctx.resilient_parsing:
            near = nearest(name, self.list_commands(ctx))
            message = f"there is no command `{name}`"
            raise UsageError(f"{message}; did you mean `{near}`?") if near else UsageError(message, hint=help_hint(ctx))
        return super().resolve_command(ctx, args)


def help_page(command: Any, ctx: Any, *, expert: bool = False) -> str:
    """The help of a command.

    Args:
        command: a `Command` or a `Group`.
        ctx: its context.
        expert: show the expert options, instead of their names.
    """
    width = min(shutil.get_terminal_size().columns, MAX_WIDTH)
    paragraphs = [_filled(paragraph, width) for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(command.help or ""))]
    epilog = inspect.cleandoc(command.epilog or "")
    has_examples = epilog.startswith("Examples:")
    usage = textwrap.fill(f"Usage: {_usage(command, ctx)}", width, subsequent_indent="    ", break_on_hyphens=False, break_long_words=False)
    parts = [usage.replace("Usage:", _bold("Usage:"), 1), *filter(None, paragraphs)]
    if has_examples:
        parts.append("\n".join([_bold("Examples:"), *_examples(epilog.splitlines()[1:], width)]))
    panels = _command_rows(command, ctx) | _parameter_rows(command, ctx)
    hidden = [] if expert else panels.pop(EXPERT, [])
    parts += _tables(panels, width, are_aligned=not isinstance(command, TyperGroup))
    if hidden:
        names = re.findall(r"--[\w-]+", " ".join(name for name, _ in hidden))
        parts.append(_filled(f"{ALL} also explains the {EXPERT.lower()}: {', '.join(names)}.", width))
    if epilog and not has_examples:
        parts.append(_filled(epilog, width))
    return "\n\n".join(parts) + "\n"


def _tables(panels: Rows, width: int, *, are_aligned: bool) -> list[str]:
    """Each panel as text. Descriptions of all options begin at the same column if the tables are aligned."""
    options = [row for title, rows in panels.items() if title != "Arguments" for row in rows]
    lefts = {title: _left(options if are_aligned and title != "Arguments" else rows) for title, rows in panels.items()}
    return ["\n".join([_bold(f"{title}:"), *_table(rows, lefts[title], width)]) for title, rows in panels.items()]


def _name_variables(command: Any, ctx: Any) -> None:
    """Name the environment variable of each option after the option, whatever its parameter is called."""
    for parameter in command.params:
        if isinstance(parameter, TyperOption) and ctx.auto_envvar_prefix and parameter.envvar is None:
            parameter.envvar = f"{ctx.auto_envvar_prefix}_{option_of(parameter).strip('-').replace('-', '_').upper()}"


def _usage(command: Any, ctx: Any) -> str:
    words = [ctx.command_path, "[OPTIONS]"]
    for parameter in command.params:
        if isinstance(parameter, TyperArgument):
            name = _argument_name(parameter)
            words.append(name if parameter.required or name.startswith("[") else f"[{name}]")
        elif parameter.required:
            words.append(f"{parameter.opts[-1]} {_metavar(parameter)}")
    return " ".join([*words, *(["COMMAND"] if isinstance(command, TyperGroup) else [])])


def _command_rows(command: Any, ctx: Any) -> Rows:
    """Names and first sentences of the commands of a group, by title."""
    panels: Rows = {}
    for name in command.list_commands(ctx) if isinstance(command, TyperGroup) else []:
        each: Any = command.get_command(ctx, name)
        panels.setdefault(_title(each, "Commands"), []).append((name, _first_sentence(each.help or "")))
    return panels


def _parameter_rows(command: Any, ctx: Any) -> Rows:
    """Names and descriptions by title: arguments, options, options of a subject, and the expert options last."""
    panels: Rows = {"Arguments": [], "Options": []}
    for parameter in command.get_params(ctx):
        if getattr(parameter, "hidden", False):
            continue
        if isinstance(parameter, TyperArgument):
            panels["Arguments"].append((_argument_name(parameter), parameter.help or ""))
        else:
            panels.setdefault(_title(parameter, "Options"), []).append((_option_name(parameter), _described(parameter)))
    panels[EXPERT] = panels.pop(EXPERT, [])
    return {title: rows for title, rows in panels.items() if rows}


def _title(each: Any, otherwise: str) -> str:
    title = getattr(each, "rich_help_panel", None)
    return title if isinstance(title, str) else otherwise


def _argument_name(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    return f"{name}..." if parameter.nargs != 1 and not name.endswith("...") else name


def _option_name(parameter: Any) -> str:
    """An option as it is typed: the short name, the long one, and what stands for its value."""
    short = next((name for name in parameter.opts if not name.startswith("--")), None)
    return f"{f'{short}, ' if short else '    '}{option_of(parameter)} {_metavar(parameter)}".rstrip()


def _metavar(parameter: Any) -> str:
    if parameter.is_flag:
        return ""
    kind = parameter.type_descriptor
    if parameter.metavar is None and kind.choices is not None:
        return "|".join(map(str, kind.choices))
    return parameter.metavar or _METAVARS.get(kind.annotation, "TEXT")


def _described(parameter: Any) -> str:
    text = "Show this help and exit." if "--help" in parameter.opts else parameter.help or ""
    shown, value = parameter.show_default, parameter.default
    default = shown if isinstance(shown, str) else "" if not shown or callable(value) or value in (None, False, "") else str(value)
    return f"{text} [default:{NO_BREAK}{default}]" if default else text


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s", " ".join(inspect.cleandoc(text).partition("\n\n")[0].split()))[0]


def _left(rows: Iterable[tuple[str, str]]) -> int:
    """Where the descriptions of these names begin."""
    return min(LEFT, max(len(name) for name, _ in rows) + 4)


def _table(rows: Iterable[tuple[str, str]], left: int, width: int) -> list[str]:
    """Names and descriptions side by side; a long name has a line of its own."""
    lines = []
    for name, text in rows:
        first, *more = _filled(text, width - left).splitlines() or [""]
        if len(name) + 4 > left:
            lines += [f"  {_bold(name)}", *(f"{'':{left}}{line}" for line in (first, *more))]
        else:
            lines += [f"  {_bold(name)}{'':{left - 2 - len(name)}}{first}".rstrip(), *(f"{'':{left}}{line}" for line in more)]
    return lines


def _examples(lines: Iterable[str], width: int) -> list[str]:
    """A command in each line, never wrapped; a remark that does not fit behind its command stands above it."""
    shown = []
    for line in filter(None, map(str.strip, lines)):
        command, remark = re.fullmatch(r"(.*?)(?:\s{2,}(?:# )?(.*))?", line).groups()  # type: ignore[union-attr] # matches anything
        if not remark:
            shown.append(f"  {command}")
        elif len(command) + len(remark) + 8 <= width:
            shown.append(f"  {command}  # {remark}")
        else:
            shown += [f"  # {remark}", f"  {command}"]
    return shown


def _filled(text: str, width: int) -> str:
    return textwrap.fill(" ".join(text.split()), width, break_on_hyphens=False, break_long_words=False).replace(NO_BREAK, " ")


def _bold(text: str) -> str:
    return text if os.environ.get("NO_COLOR") else typer.style(text, bold=True)
