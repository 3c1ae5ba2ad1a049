"""The report as HTML, and as a page in a real browser."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer import Typer
from typer.testing import CliRunner

from dino_extract.cli.report import report as report_command
from dino_extract.errors import ConfigError, StoreError
from dino_extract.pictures.report import report
from dino_extract.pictures.report.page import histogram_svg
from dino_extract.pictures.report.thumbnails import thumbnails_of
from dino_extract.store import Store
from tests.pictures.picture_store import make_store, patch_field

EVIL = "cats/<img src=x onerror=document.title='owned'>&\"'.jpg"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# What a browser needs in a container without a screen, and nothing that would have it call home.
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def sample(folder: Path, num_images: int = 40, **options: Any) -> Store:
    """Images in three folders; images 5 and 6 are alike, and one name is full of HTML."""
    names = sorted([f"{'abc'[i % 3]}/{i:03}.jpg" for i in range(num_images - 1)] + [EVIL])
    features = np.random.default_rng(0).normal(size=(num_images, 16)).astype(np.float32)
    features[6] = features[5]
    return make_store(folder, names, features=features, patches=[patch_field(2, 2, 0)] * num_images, **options)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of 40 images."""
    folder = tmp_path_factory.mktemp("report")
    with sample(folder, broken=["a/003.jpg"]) as store:
        labels = {path: "<i>first" if row < 9 else "last" for row, path in enumerate(store.paths)}
        return Path(report(store, labels=labels, projection="pca").path)


def data_of(page: Path) -> dict[str, Any]:
    """The data that the script of a page reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.S)
    assert found is not None
    content: dict[str, Any] = json.loads(found[1])
    return content


@pytest.mark.parametrize("method", ["auto", "tsne", "umap"])
def test_images_that_are_all_the_same_have_a_page(method: Any, tmp_path: Path) -> None:
    """Without any difference there is no map of neighbours, and the page has the PCA map alone."""
    features = np.tile(np.arange(16, dtype=np.float32), (8, 1))
    with make_store(tmp_path, [f"{i}.jpg" for i in range(8)], features=features, with_photos=False) as store:
        page = Path(report(store, projection=method).path)

    assert list(data_of(page)["maps"]) == ["PCA"]


def test_many_images_get_smaller_thumbnails(tmp_path: Path) -> None:
    """The side of a thumbnail shrinks so that all sheets together stay within their pixels."""
    with sample(tmp_path) as store:
        thumbnails = thumbnails_of(store, store.paths, max_pixels=40 * 48 * 48)

    assert thumbnails.side_px == 48
    assert len(thumbnails.sheets) == 1
    assert (thumbnails.size == 48).all()


def test_a_deleted_image_has_no_thumbnail(tmp_path: Path) -> None:
    """A missing photograph leaves its cell empty and the report says so."""
    with sample(tmp_path) as store:
        (tmp_path / "photos" / "a" / "000.jpg").unlink()

        result = report(store, projection="pca")

    assert "1 of these images can no longer be read" in Path(result.path).read_text()


def test_the_page_loads_nothing_from_anywhere(page: Path) -> None:
    """No address, no link and no import is in the page, and its policy forbids all but inline data."""
    text = page.read_text()

    assert re.findall(r"https?://|<link|<iframe|@import|<img", text) == []
    assert "default-src 'none'; img-src data:;" in text


def test_names_cannot_break_out_of_the_page(page: Path) -> None:
    """A file name full of HTML is in the data with its angle brackets escaped."""
    text = page.read_text()

    assert "<img" not in text
    assert EVIL in data_of(page)["names"]


def test_failures_are_on_the_page(page: Path) -> None:
    """The image that could not be embedded is listed with its reason, and is not on the map."""
    text = page.read_text()

    assert '<td class="path">a/003.jpg</td><td>unreadable</td><td>decode: not an image</td>' in text
    assert "a/003.jpg" not in data_of(page)["names"]


def test_the_settings_of_the_file_are_on_the_page(page: Path) -> None:
    """Model, hash of the weights and pixels are in the table."""
    text = html.unescape(page.read_text())

    assert "<th>Model</th><td>vits14</td>" in text
    assert "<th>SHA-256 of the weights</th><td>" + "ab" * 32 in text
    assert "<th>Pixels</th><td>crop, 112 x 112, bicubic, Pillow</td>" in text


def test_the_same_file_gives_the_same_page(tmp_path: Path) -> None:
    """Nothing in the page comes from the clock or from chance."""
    with sample(tmp_path) as store:
        first = Path(report(store, tmp_path / "1.html").path).read_bytes()
        second = Path(report(store, tmp_path / "2.html").path).read_bytes()

    assert first == second


def test_a_limit_takes_images_evenly_and_says_so(tmp_path: Path) -> None:
    """With 10 of 40 images on the map, figures are still of all."""
    with sample(tmp_path) as store:
        with pytest.raises(ConfigError, match="`threshold` must be a cosine above 0 and at most 1, got 2"):
            report(store, threshold=2)
        result = report(store, images=10, projection="pca")

    text = Path(result.path).read_text()
    assert (result.images, result.shown) == (40, 10)
    assert "The map shows 10 of the 40 images" in text
    assert "<td>40 embedded, none failed</td>" in text


def test_labels_go_by_the_images_that_are_shown(tmp_path: Path) -> None:
    """Of ten images out of forty each has the label that was given for its path, and those without one are said to have none."""
    with sample(tmp_path) as store:
        label_of = {path: f"odd <b>{len(path) % 2}" for path in store.paths[:-1]}
        result = report(store, labels=label_of, images=10, projection="pca")

    data = data_of(Path(result.path))
    numbers = np.frombuffer(base64.b64decode(data["label"]), "<i4")
    assert [data["labels"][number] for number in numbers] == [label_of.get(name, "(no label)") for name in data["names"]]
    assert "(no label)" in data["labels"]


def test_an_unfinished_file_is_refused(tmp_path: Path) -> None:
    """Half a file has no report."""
    with make_store(tmp_path, is_finished=False) as store, pytest.raises(StoreError, match="is not finished"):
        report(store)


def test_one_image_is_refused(tmp_path: Path) -> None:
    """A single image has no neighbour."""
    with make_store(tmp_path, ["a.jpg"]) as store, pytest.raises(ConfigError, match="holds one embedded image, a map needs at least 2"):
        report(store)


def test_two_images_are_enough(tmp_path: Path) -> None:
    """The smallest map has two dots."""
    with make_store(tmp_path, ["a.jpg", "b.jpg"]) as store:
        result = report(store)

    assert data_of(Path(result.path))["names"] == ["a.jpg", "b.jpg"]


def test_the_command_prints_the_path_of_the_page(tmp_path: Path) -> None:
    """Standard output is the path of the page, and standard error says how large it is."""
    with sample(tmp_path) as store:
        path = store.path
    app = Typer()
    app.command()(report_command)

    result = CliRunner().invoke(app, [path, "--projection", "pca"])

    assert result.stdout == f"{tmp_path / 'photos.html'}\n"
    assert "40 of 40 images on the map" in result.stderr


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real Chromium without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    profile = tmp_path_factory.mktemp("profile")
    with playwright.sync_playwright() as driver:
        size = {"width": 1280, "height": 860}
        context = driver.chromium.launch_persistent_context(
            str(profile), executable_path=CHROMIUM, headless=True, args=CHROMIUM_FLAGS, viewport=size
        )
        yield context
        context.close()


@pytest.fixture
def tab(browser: Any, page: Path) -> Iterator[Any]:
    """The report, open in the browser; what the browser complains about fails the test."""
    tab = browser.new_page()
    complaints: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: complaints.append(request.url) if not request.url.startswith(("file:", "data:")) else None)
    tab.goto(f"file://{page}")
    tab.wait_for_selector("html[data-ready=yes]")
    yield tab
    tab.close()
    assert complaints == []


def hover_over_an_image(tab: Any) -> int:
    """Move the pointer over the map until it meets an image, and give back which."""
    box = tab.locator("#map").bounding_box()
    for step in range(400):
        tab.mouse.move(box["x"] + box["width"] * (0.3 + 0.4 * (step % 20) / 20), box["y"] + box["height"] * (0.3 + 0.4 * (step // 20) / 20))
        if tab.locator("#tip").is_visible():
            return int(tab.locator("#tip").get_attribute("data-index"))
    raise AssertionError("no image under the pointer anywhere on the map")


def test_hovering_shows_the_thumbnail_and_the_name(tab: Any, page: Path) -> None:
    """The tip over a dot has the picture, painted, and the path as text."""
    index = hover_over_an_image(tab)

    assert tab.locator("#tip").inner_text().strip() == data_of(page)["names"][index]
    painted = "canvas => canvas.getContext('2d').getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data[3]"
    tab.wait_for_function(f"({painted})(document.querySelector('#tip canvas')) === 255")


def test_clicking_shows_the_neighbours(tab: Any, page: Path) -> None:
    """The panel lists the most similar images in the order of the data."""
    index = hover_over_an_image(tab)

    tab.mouse.down()
    tab.mouse.up()

    assert tab.locator("#panel").get_attribute("data-index") == str(index)
    shown = [int(tile.get_attribute("data-index")) for tile in tab.locator("#neighbours .tile").all()]
    data = data_of(page)
    want = np.frombuffer(base64.b64decode(data["neighbours"]), "<i4").reshape(len(data["names"]), -1)
    assert shown == want[index].tolist()


def test_clicking_a_neighbour_selects_it(tab: Any) -> None:
    """One can walk from image to image."""
    hover_over_an_image(tab)
    tab.mouse.down()
    tab.mouse.up()
    first = tab.locator("#neighbours .tile").first
    wanted = first.get_attribute("data-index")

    first.click()

    assert tab.locator("#panel").get_attribute("data-index") == wanted


def test_the_label_of_an_image_is_shown_as_text(tab: Any, page: Path) -> None:
    """Where labels are given the map has their colours first, and the panel names that of the image, whatever it contains."""
    tab.locator("#find").fill(data_of(page)["names"][0])

    assert tab.locator("#colour-choice").input_value() == "label"
    assert tab.locator("#panel .facts").inner_text().startswith("<i>first, vector length ")
    assert tab.locator("#legend span").all_inner_texts() == ["last", "<i>first"]


def test_finding_a_name_selects_the_image(tab: Any) -> None:
    """Typing part of a path selects it; HTML in a name is shown as text and runs nothing."""
    tab.locator("#find").fill("onerror")

    assert tab.locator("#panel .path").inner_text() == EVIL
    assert tab.title() == "photos.h5"


def test_duplicates_and_clusters_are_filled_when_they_come_into_sight(tab: Any) -> None:
    """Scrolling to a gallery fills it: the two equal images are one group."""
    for name in ("outliers", "duplicates", "clusters"):
        tab.locator(f"[data-gallery={name}]").scroll_into_view_if_needed()
        tab.wait_for_selector(f"[data-gallery={name}] .tile")

    assert tab.locator("[data-gallery=duplicates] .group").count() == 1
    assert tab.locator("[data-gallery=duplicates] .tile").count() == 2


def test_every_colouring_and_the_pictures_can_be_chosen(tab: Any) -> None:
    """Each choice paints the map differently."""
    painted = set()
    for choice in tab.locator("#colour-choice option").all_inner_texts():
        tab.locator("#colour-choice").select_option(choice)
        painted.add(tab.locator("#map").screenshot())
    tab.locator("#show-pictures").check()
    painted.add(tab.locator("#map").screenshot())

    assert len(painted) == len(tab.locator("#colour-choice option").all()) + 1


@pytest.mark.parametrize("values", [[20.000002, 20.0], [1.0, 1.0 + 1e-7, 1.0 + 2e-7], [1e8, 1e8]])
def test_a_histogram_of_numbers_that_hardly_differ_is_drawn(values: list[float]) -> None:
    """Lengths a rounding apart get their bars like others: one of full height, and room for 48."""
    drawn = histogram_svg(np.array(values, np.float32), "length")

    assert drawn.count("<rect") == 48
    assert 'height="100.0"' in drawn
