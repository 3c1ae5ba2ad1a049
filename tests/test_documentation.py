"""The documentation and the help texts: short sentences, ordinary words, links that lead somewhere, options that exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from dino_extract.cli.app import app

REPOSITORY = Path(__file__).resolve().parents[1]
MAX_WORDS = 30
FILES = sorted(
    [
        *REPOSITORY.glob("*.md"),
        *REPOSITORY.glob("docs/*.md"),
        *REPOSITORY.glob("weights/*.md"),
    ]
)
NAMES = [str(path.relative_to(REPOSITORY)) for path in FILES]

# Each with what to write instead. Only turns of phrase that are wrong almost everywhere are listed.
FORBIDDEN = {
    r"(?<!there )(?<!though )\b(?:is|are|was|were) no (?!longer\b|more\b|less\b)": "is not a",
    r"\bgone\b": "deleted, or moved",
    r"\bbeside the model\b": "on the GPU",
    r"\bsurest\b": "most confident",
    r"\balike\b": "compatible, similar",
    r"\btold\b": "reported",
    r"\btelephones?\b": "phone",
    r"\bbefell\b|\bbefallen\b": "happened",
    r"\bthe file to be\b": "target",
    r"\blike no other\b": "unusual",
    r"\bhand(?:s|ed)? over\b": "pass",
    r"\bthat which\b|\bthose who\b|\bhe who\b": "name the subject",
    r"\bwhoever\b|\bnobody\b|\bthereby\b|\bwherein\b|\bnevertheless\b": "an ordinary word",
    r"\bof (?:its|their|your|our) own\b": "its own X, separate",
    r"\bwhat becomes of\b|\bwhat became of\b": "what happens to",
    r"\bpictures?\b": "image",
    r"\b(?:TODO|FIXME|XXX)\b": "an issue",
}
OPTIONS_OF_OTHERS = {"--help", "--help-all", "--torch-backend", "--from", "--save-features", "--signals-to-handle"}
REGISTRY_HOSTS = r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|anaconda\.(?:org|com)|ghcr\.io|docker\.io|quay\.io|crates\.io"


def prose(markdown: str) -> Iterator[tuple[int, str]]:
    """The texts of a page as (number of the first line, text): paragraphs, list items and cells of tables, without code and links."""
    text = re.sub(r"^( *)```.*?^\1```", lambda block: "\n" * block[0].count("\n"), markdown, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<!--.*?-->", lambda comment: "\n" * comment[0].count("\n"), text, flags=re.DOTALL)
    start, lines = 1, list[str]()
    for number, line in enumerate([*text.splitlines(), ""], 1):
        begins = re.match(r"\s*(?:$|[|#>]|[-*] |\d+\. |:::)", line)
        if begins and lines:
            yield start, " ".join(lines)
            lines = []
        if line.lstrip().startswith("|"):
            for cell in re.split(r"(?<!\\)\|", line):
                yield number, cell.strip()
        elif line.strip():
            start = start if lines else number
            lines.append(re.sub(r"^\s*(?:#+|>|[-*]|\d+\.)\s+", "", line).strip())


def sentences(text: str) -> list[str]:
    """A text cut at the ends of its sentences; code is one word, and of a link only its text is left."""
    text = re.sub(r"`+[^`]*`+", "CODE", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.split(r"(?<=[.!?])[)*]*\s+(?=[A-Z0-9(\"*])", text)


def complaints(text: str) -> list[str]:
    """What is wrong with the English of a text."""
    found = []
    for sentence in sentences(text):
        words = [word for word in sentence.split() if re.search(r"\w", word)]
        if len(words) > MAX_WORDS:
            found.append(f"{len(words)} words: {sentence}")
        if sentence.count(";") > 1:
            found.append(f"a chain of semicolons: {sentence}")
        found += [
            f"`{match[0].strip()}`, better {better}: {sentence}"
            for pattern, better in FORBIDDEN.items()
            if (match := re.search(pattern, sentence, re.IGNORECASE))
        ]
    return found


@cache
def commands() -> dict[str, Any]:
    """Every command by its name, such as `weights pull`."""
    return dict(_flat("", typer.main.get_command(app)))


def _flat(prefix: str, group: Any) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _flat(f"{prefix}{name} ", command)
        elif not command.hidden:
            yield prefix + name, command


def anchors(markdown: str) -> set[str]:
    """The anchors that the headings of a page get."""
    without_code = re.sub(r"^```.*?^```", "", markdown, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", without_code, flags=re.MULTILINE)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower())).strip("-") for heading in headings}


def broken_links(path: Path, markdown: str) -> list[str]:
    """Relative links of a page that lead nowhere."""
    found = []
    without_code = re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", markdown, flags=re.DOTALL | re.MULTILINE))
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code):
        name, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", name):
            continue
        page = path.parent / name if name else path
        if not page.exists() or (anchor and anchor not in anchors(page.read_text("utf-8") if name else markdown)):
            found.append(target)
    return found


def unknown_options(markdown: str) -> list[str]:
    """Options in the commands of a page that the program does not have."""
    found = []
    for line in re.findall(r"^(?:\$ )?((?:[\w -]+ )?dino-extract [a-z].*?)(?: +#.*)?$", markdown.replace("\\\n", " "), flags=re.MULTILINE):
        for call in re.split(r"[|;]|&&", line):
            found += [f"{option} in `{call.strip()}`" for option in _unknown_of(call)]
    return found


def _unknown_of(call: str) -> list[str]:
    words = shlex.split(call.replace("'\\''", "")) if call.count("'") % 2 == 0 else call.split()
    if "dino-extract" not in words:
        return []
    words = words[words.index("dino-extract") + 1 :]
    name = " ".join(words[:2]) if words[:1] == ["weights"] else " ".join(words[:1])
    if name not in commands():
        return [] if name.startswith("-") else [name]
    known = {each for parameter in commands()[name].params for each in [*parameter.opts, *parameter.secondary_opts]}
    known |= {"--help", "-h"}
    return [word.split("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word) and word.split("=")[0] not in known]


def pages(text: str) -> list[Any]:
    """The parameters of a test over all pages."""
    return [pytest.param(path, id=name) for path, name in zip(FILES, NAMES, strict=True) if re.search(text, name)]


@pytest.mark.parametrize("path", pages(""))
def test_pages_are_plain_english(path: Path) -> None:
    """No sentence of a page is longer than thirty words, chains clauses by semicolons, or uses a word that newcomers stumble over."""
    found = [f"{path.name}:{line}: {each}" for line, text in prose(path.read_text("utf-8")) for each in complaints(text)]

    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", sorted(commands()))
def test_help_texts_are_plain_english(name: str) -> None:
    """The same of what `--help` prints for a command and for each of its options."""
    command = commands()[name]
    texts = [command.help or "", *(each.help or "" for each in command.params)]
    found = [each for text in texts for paragraph in text.split("\n\n") for each in complaints(" ".join(paragraph.split()))]

    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", pages(""))
def test_links_lead_somewhere(path: Path) -> None:
    """Every relative link names a file that exists, and a heading that the file has."""
    assert not broken_links(path, path.read_text("utf-8"))


@pytest.mark.parametrize("path", pages("README|docs/|CONTRIBUTING"))
def test_commands_in_the_pages_have_their_options(path: Path) -> None:
    """Every command in a block of code exists and has the options that the page gives it."""
    assert not unknown_options(path.read_text("utf-8"))


@pytest.mark.parametrize("path", pages("README|docs/|CONTRIBUTING"))
def test_options_in_the_text_exist(path: Path) -> None:
    """Every option that a page speaks of belongs to a command, unless it is one of another program."""
    text = re.sub(r"^( *)```.*?^\1```", "", path.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    named = {option for code in re.findall(r"`([^`\n]+)`", text) for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", code)}
    known = {each for command in commands().values() for parameter in command.params for each in parameter.opts + parameter.secondary_opts}

    assert not named - known - OPTIONS_OF_OTHERS


@pytest.mark.parametrize("path", pages(""))
def test_pages_name_no_package_registry(path: Path) -> None:
    """Which registry pip asks is a matter of the reader's machine."""
    assert not re.findall(REGISTRY_HOSTS, path.read_text("utf-8"))


def test_the_messages_of_troubleshooting_are_those_of_the_program() -> None:
    """Every message in a table of docs/troubleshooting.md is in the code, word for word; `...` stands for what changes."""
    page = (REPOSITORY / "docs" / "troubleshooting.md").read_text("utf-8")
    code = "".join(path.read_text("utf-8") for path in sorted((REPOSITORY / "dino_extract").rglob("*.py")))
    code = re.sub(r'"\s*\n\s*f?"', "", code).replace("`", "")
    messages = re.findall(r"^\| `(.*?)` \|", page.partition("## Finding images")[2], flags=re.MULTILINE)

    assert len(messages) > 20
    assert not [part for message in messages for part in message.replace("`", "").split("...") if part.strip() and part.strip() not in code]


def test_every_command_is_in_the_reference() -> None:
    """The table of docs/commands.md has every command, and so has the part that is made from the program."""
    specification = importlib.util.spec_from_file_location("site_hooks", REPOSITORY / "docs" / "site_hooks.py")
    hooks = importlib.util.module_from_spec(specification)  # type: ignore[arg-type]
    specification.loader.exec_module(hooks)  # type: ignore[union-attr]
    table = (REPOSITORY / "docs" / "commands.md").read_text("utf-8")
    generated = hooks.command_reference()

    assert hooks.COMMANDS_MARKER in table
    for name in commands():
        assert f"`{name}`" in table
        assert f"### {name}\n" in generated


def test_every_page_is_in_the_navigation() -> None:
    """A page that mkdocs.yml does not list cannot be found by a reader of the site."""
    navigation = (REPOSITORY / "mkdocs.yml").read_text("utf-8")

    assert not [path.name for path in REPOSITORY.glob("docs/*.md") if f": {path.name}\n" not in navigation]


BAD = [
    " ".join(["word"] * 31) + ".",
    "The end.\nThis is right. " + " ".join(["word"] * 31),
    "A file is written; it is synced; it is renamed.",
    "Text is no image.",
    "Rows of images that have gone stay.",
    "They must be made alike.",
    "| option | the surest mistakes first |",
    "- JPEGs are decoded beside the model.",
    "The error is told before the work.",
    "A chart is a picture.",
]
GOOD = [
    "There is no number that suits every model.",
    "```\nthe surest mistakes have gone and are told\n```",
    "Use `a; b; c` and `the picture that has gone`.",
    "See [images](pictures/knn.png). " + "A short sentence. " * 20,
    "A row is no longer read; it is skipped.",
]


@pytest.mark.parametrize("text", BAD)
def test_the_check_finds_bad_english(text: str) -> None:
    """Each of these texts is found, wherever it is on a page."""
    assert [each for _, part in prose(f"# Title\n\nA good sentence.\n\n{text}\n") for each in complaints(part)]


@pytest.mark.parametrize("text", GOOD)
def test_the_check_accepts_good_english(text: str) -> None:
    """Code, links and ordinary negations are not held against a page."""
    assert not [each for _, part in prose(text) for each in complaints(part)]


def test_the_check_finds_broken_links(tmp_path: Path) -> None:
    """A missing file and a missing heading are found; an existing heading and an address are not."""
    page = tmp_path / "page.md"
    text = "# A title\n\n[a](missing.md) [b](#nowhere) [c](#a-title) [d](https://example.com/x) `[e](code.md)`\n"
    page.write_text(text, "utf-8")

    assert broken_links(page, text) == ["missing.md", "#nowhere"]


def test_the_check_finds_options_that_do_not_exist() -> None:
    """An option of another command, an unknown one and an unknown command are found."""
    lines = (
        "dino-extract info x.h5 --prune   # --this is a comment",
        "$ dino-extract frobnicate x.h5",
        "dino-extract embed a/ --shard 1/2 | head -4",
    )
    text = "\n".join(["```", *lines, "```", ""])

    assert [each.split(" in ")[0] for each in unknown_options(text)] == ["--prune", "frobnicate"]
