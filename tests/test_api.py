"""What `import dino_extract as dx` offers."""

from __future__ import annotations

import subprocess
import sys

import pytest

import dino_extract as dx


@pytest.mark.parametrize("name", [name for name in dx.__all__ if not name.startswith("__")])
def test_every_public_name_is_there_and_documented(name: str) -> None:
    """Each name in `dx.__all__` is something with a docstring, and not the module of that name."""
    value = getattr(dx, name)

    assert callable(value)
    assert value.__doc__


def test_importing_the_package_loads_no_heavy_library() -> None:
    """`import dino_extract` is free: torch and h5py wait for the first use."""
    script = "import sys, dino_extract; assert not {'torch', 'h5py', 'numpy'} & sys.modules.keys()"

    subprocess.run([sys.executable, "-c", script], check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    """A misspelt name says what was looked for."""
    with pytest.raises(AttributeError, match="emebd"):
        _ = dx.emebd
