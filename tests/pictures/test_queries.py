"""Search and classification with image files, and contact sheets of every kind of result, from Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dino_extract as dx
from dino_extract.errors import ConfigError
from tests.analysis.stores import write_store


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos.h5 of six smooth images in two classes."""
    folder = tmp_path_factory.mktemp("queries")
    rng = np.random.default_rng(0)
    for number in range(6):
        path = folder / "photos" / ("red" if number < 3 else "blue") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        noise[..., 0 if number < 3 else 2] = 255
        Image.fromarray(noise).resize((60, 60), Image.Resampling.BICUBIC).save(path)
    dx.embed(folder / "photos", folder / "photos.h5", model="tiny", random_weights=0, size="28", workers=1)
    return folder


def test_queries_may_be_image_files_stores_and_paths_together(photos: Path, tmp_path: Path) -> None:
    """Each kind of query is answered, in the order paths, stores, image files, and records the file that it is an image of."""
    file = str(photos / "photos.h5")
    image = photos / "photos" / "red" / "1.png"
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    failed: list[str] = []

    results = dx.search(
        file,
        [image, tmp_path / "broken.jpg", file],
        paths="blue/*",
        top=2,
        on_failure=lambda path, reason: failed.append(path),
    )

    assert [result.query for result in results[:3]] == ["blue/3.png", "blue/4.png", "blue/5.png"]
    assert [result.source for result in results] == [file] * 9 + [""]
    assert results[-1].hits[0].path == "red/1.png"
    assert results[-1].hits[0].similarity == pytest.approx(1, abs=1e-3)
    assert failed == [str(tmp_path / "broken.jpg")]


def test_vectors_are_queries_too(photos: Path) -> None:
    """An array of vectors is searched for without a model."""
    with dx.open(photos / "photos.h5") as store:
        results = dx.search(store, store.features[:2], names=["one", "two"], top=1)

    assert [(result.query, result.hits[0].path) for result in results] == [("one", "blue/3.png"), ("two", "blue/4.png")]


def test_classify_takes_image_files(photos: Path) -> None:
    """A probe labels a file of embeddings and an image file in one call."""
    file = photos / "photos.h5"
    probe = dx.linear(file, per_class=2).probe

    found = dx.classify(probe, [file, photos / "photos" / "red" / "0.png"])

    assert len(found) == 7
    assert {each.labels[0] for each in found} <= {"red", "blue"}


def test_every_kind_of_result_has_a_contact_sheet(photos: Path, tmp_path: Path) -> None:
    """Results of search, dedup, leaks, outliers and cluster are drawn by one function, and no sheet is replaced without `overwrite`."""
    file = str(photos / "photos.h5")
    one, other = (write_store(tmp_path / f"{name}.h5", [f"{name}.png"], {"features": np.ones((1, 4), np.float32)}) for name in "ab")
    results = {
        "search": dx.search(file, paths="red/*", top=2),
        "dedup": dx.dedup(file, threshold=0.01),
        "outliers": dx.outliers(file),
    }

    for name, result in results.items():
        drawn = dx.sheet(result, file, tmp_path / f"{name}.png")
        assert Path(drawn.path).stat().st_size > 500
        assert drawn.lost == []
        with pytest.raises(ConfigError, match="is already there"):
            dx.sheet(result, file, tmp_path / f"{name}.png")
    folder = dx.sheet(dx.cluster(file, 2), file, tmp_path / "clusters").path
    assert sorted(each.name for each in Path(folder).iterdir()) == ["cluster-0000.png", "cluster-0001.png", "clusters.png"]
    shared = dx.leaks(one, other)
    assert dx.sheet(shared, one, tmp_path / "leaks.png", against=other).text == "1 shared image"


def test_a_result_of_another_kind_is_refused(photos: Path, tmp_path: Path) -> None:
    """Anything else is refused in one sentence."""
    with pytest.raises(ConfigError, match="a contact sheet shows results of"):
        dx.sheet(["a"], photos / "photos.h5", tmp_path / "x.png")  # type: ignore[list-item]


def test_thresholds_are_calibrated_from_python(photos: Path) -> None:
    """Recall falls with the threshold, and the log describes the alterations."""
    lines: list[str] = []

    steps = dx.calibrate(photos / "photos.h5", 3, log=lines.append)

    recall = [step.recall["flip"] for step in steps]
    assert recall == sorted(recall, reverse=True)
    assert lines[0] == "3 of 6 images, a copy of each altered in 5 ways and embedded:"
