"""What `make docs` adds to the pages: the command reference from the program itself, and the public names of Python.

`commands.md` and `api.md` each hold a marker; the text that replaces it is made here, so that it cannot fall behind the code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer

import dino_extract as dx
from dino_extract.cli.app import app

COMMANDS_MARKER = "<!-- every command with its options: made by docs/site_hooks.py -->"
NAMES_MARKER = "<!-- every public name with its docstring: made by docs/site_hooks.py -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marker of a page, if it has one; mkdocs calls this for every page."""
    if COMMANDS_MARKER in markdown:
        return markdown.replace(COMMANDS_MARKER, command_reference())
    if NAMES_MARKER in markdown:
        return markdown.replace(NAMES_MARKER, name_reference())
    return markdown


def command_reference() -> str:
    """A section for each command: what it does, its arguments and options as a table, its examples."""
    return "\n\n".join(_section(name, command) for name, command in commands())


def commands() -> Iterator[tuple[str, Any]]:
    """Every command as (`weights pull`, click command), in the order of `dino-extract --help`."""
    yield from _flat("", typer.main.get_command(app))


def _flat(prefix: str, group: Any) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _flat(f"{prefix}{name} ", command)
        elif not command.hidden:
            yield f"{prefix}{name}", command


def _section(name: str, command: Any) -> str:
    context = typer.Context(command, info_name=f"dino-extract {name}")
    usage = re.sub("[{}]", "", " ".join([context.command_path, *command.collect_usage_pieces(context)]))
    parts = [f"### {name}", _escaped(command.help or ""), f"```text\n{usage}\n```"]
    for kind in ("argument", "option"):
        parameters = [each for each in command.params if each.param_type_name == kind and not each.hidden]
        if rows := [_row(each.get_help_record(context)) for each in parameters]:
            parts.append("\n".join([f"| {kind} | meaning | default |", "|---|---|---|", *rows]))
    if examples := [line.strip() for line in (command.epilog or "").splitlines() if line.strip().startswith("dino-extract")]:
        parts.append("\n".join(["```bash", *examples, "```"]))
    return "\n\n".join(parts)


PLACEHOLDERS = {"<str>": "TEXT", "<list[str]>": "TEXT", "<int>": "N", "<int range>": "N", "<float>": "X", "<float range>": "X"}


def _row(record: tuple[str, str]) -> str:
    spelling, text = record
    spelling = re.sub(r"<[^>]*>", lambda found: PLACEHOLDERS.get(found[0], found[0].strip("<>")), spelling)
    spelling = re.sub(r"^([A-Z][\w.]*) TEXT$", r"\1", spelling)  # an argument says enough by its name
    notes = re.search(r"\s*\[([^\[\]]*)\]$", text)  # `[default: 10]`, `[required]`
    default = notes[1].removeprefix("default: ").removeprefix("(").removesuffix(")") if notes else ""
    meaning = text[: notes.start()] if notes else text
    return f"| {_code(spelling)} | {_escaped(meaning)} | {_code(default)} |"


def _code(text: str) -> str:
    """Text as code in a cell of a table, where a bar would end the cell."""
    return f"<code>{_escaped(text)}</code>" if text else ""


def _escaped(text: str) -> str:
    return text.replace("|", "&#124;").replace("<", "&lt;").replace("*", "&#42;").replace("\b", "").strip()


def name_reference() -> str:
    """A line for mkdocstrings for each public name, sorted as a reader looks for them."""
    return "\n\n".join(_entry(name, getattr(dx, name)) for name in sorted(dx.__all__) if not name.startswith("__"))


def _entry(name: str, value: Any) -> str:
    # The module that defines the name: mkdocstrings reads files and does not follow names that are imported on first use.
    return f'::: {value.__module__}.{value.__qualname__}\n    options:\n      heading: "dx.{name}"\n      toc_label: "{name}"'
