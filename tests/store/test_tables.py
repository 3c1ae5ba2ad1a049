"""A store as a table of other libraries."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from dino_extract.errors import ConfigError
from dino_extract.store import Store, open_store, open_writer
from tests.store.sample import LAYOUT, fill, table


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A finished store of 40 images, some of which failed."""
    with open_writer(tmp_path / "out.h5", table([f"<{number:02}>.jpg".encode() for number in range(40)]), LAYOUT) as writer:
        fill(writer)
        writer.finish()
    return open_store(tmp_path / "out.h5")


def test_arrow_has_a_row_for_each_embedded_image(store: Store) -> None:
    """Paths, sizes and vectors of the table are those of the store, and patch tokens are left out."""
    pytest.importorskip("pyarrow")

    found = store.to_arrow()

    assert found.column_names == ["path", "height", "width", "features"]
    assert found["path"].to_pylist() == store.paths
    assert found["width"].to_pylist() == store.image_size[:, 1].tolist()
    np.testing.assert_array_equal(np.array(found["features"].to_pylist()), store.features[:])


def test_a_data_frame_holds_the_same(store: Store) -> None:
    """A row of the data frame has the path and the vector of its image."""
    pytest.importorskip("pandas")

    frame = store.to_dataframe()

    assert frame["path"].tolist() == store.paths
    np.testing.assert_array_equal(np.stack(frame["features"]), store.features[:])


def test_a_notebook_shows_the_datasets(store: Store) -> None:
    """The HTML names the file's datasets with type and shape, and escapes names."""
    text = store._repr_html_()

    assert "&lt;Store" in text
    assert f"<td>features</td><td>float16 ({len(store)}, 8)</td>" in text


@pytest.mark.parametrize(("package", "method"), [("pyarrow", "to_arrow"), ("pandas", "to_dataframe")])
def test_a_missing_package_is_named(store: Store, monkeypatch: pytest.MonkeyPatch, package: str, method: str) -> None:
    """Without the package, the error says how to install it."""
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(ConfigError, match=f"`{package}` is not installed"):
        getattr(store, method)()
