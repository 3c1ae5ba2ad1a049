"""Names that a reader meets in more than one place mean one thing."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "dino_extract"


def public_classes() -> dict[str, list[str]]:
    """The modules that define each public class, by its name."""
    modules = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                modules[node.name].append(str(path.relative_to(PACKAGE)))
    return modules


def test_no_public_class_name_stands_twice() -> None:
    """Each public class of the package has a name of its own."""
    classes = public_classes()

    assert len(classes) > 50
    assert {name: modules for name, modules in classes.items() if len(modules) > 1} == {}


def test_no_file_is_longer_than_400_lines() -> None:
    """A module can be read in one sitting."""
    lengths = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}

    assert len(lengths) > 100
    assert {name: length for name, length in lengths.items() if length > 400} == {}
