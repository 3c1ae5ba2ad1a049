"""The quick start notebook runs from the first cell to the last."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "quickstart.ipynb"
RUN = """
import sys, warnings
import nbformat
from nbclient import NotebookClient

notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=300, resources={"metadata": {"path": sys.argv[2]}}).execute()
nbformat.write(notebook, sys.argv[3])
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder the notebook ran in, and the notebook with its outputs."""
    for package in ("nbclient", "ipykernel", "skimage"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("notebook")
    environment = {**os.environ, "PYTHONPATH": str(NOTEBOOK.parents[1]), "IPYTHONDIR": str(folder), "JUPYTER_RUNTIME_DIR": str(folder)}
    # In a process of its own: the client leaves sockets and an event loop behind, which this process counts as errors.
    run = [sys.executable, "-c", RUN, str(NOTEBOOK), str(folder), str(folder / "out.ipynb")]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, (folder / "out.ipynb").read_text()


def test_every_cell_runs(executed: tuple[Path, str]) -> None:
    """All cells ran, and the pictures among their outputs are pictures."""
    text = executed[1]

    assert text.count('"image/png"') == 2
    assert '"output_type": "error"' not in text


def test_it_leaves_the_files_it_speaks_of(executed: tuple[Path, str]) -> None:
    """The store, the page and the table are there."""
    assert all((executed[0] / name).stat().st_size > 1000 for name in ("photos.h5", "photos.html", "photos.csv"))


def test_the_notebook_is_committed_without_outputs() -> None:
    """Outputs of one machine are no part of the repository."""
    text = NOTEBOOK.read_text()

    assert '"outputs": []' in text
    assert '"image/png"' not in text
