"""The pictures of the documentation, from real photographs: `python docs/make_pictures.py [--model NAME | --weights PATH]`.

Needs scikit-image for the photographs, and playwright with Chromium for the picture of the report.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import dino_extract as dx
from dino_extract.analysis.attention import attention_maps
from dino_extract.analysis.match import match_patches
from dino_extract.analysis.pca import pca
from dino_extract.analysis.report import report
from dino_extract.analysis.sight import see
from dino_extract.weights.loading import load

PICTURES = Path(__file__).parent / "pictures"
MAX_NBYTES = 190_000  # of one picture: a repository is not an album
MAX_WIDTH_PX = 1200
SIZE = 448  # pixels; twice the usual side gives four times the patches
CROPS = 24  # of each photograph on the map of the report


def photographs(folder: Path) -> list[Path]:
    """Photographs from the scikit-image wheel, as files; the two motorcycles are one scene seen by two cameras."""
    from skimage import data

    left, right, _ = data.stereo_motorcycle()
    pixels = {
        "astronaut": data.astronaut(),
        "chelsea": data.chelsea(),
        "coffee": data.coffee(),
        "rocket": data.rocket(),
        "motorcycle_left": left,
        "motorcycle_right": right,
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, image in pixels.items():
        paths.append(folder / f"{name}.png")
        Image.fromarray(np.asarray(image, np.uint8)).save(paths[-1])
    return paths


def crops_of(paths: list[Path], folder: Path) -> None:
    """A folder for each photograph with parts of it, some mirrored."""
    random = np.random.default_rng(0)
    for path in paths:
        (folder / path.stem).mkdir(parents=True, exist_ok=True)
        with Image.open(path) as picture:
            for number in range(CROPS):
                side = int(min(picture.size) * random.uniform(0.4, 0.9))
                left, top = (int(random.integers(0, length - side + 1)) for length in picture.size)
                part = picture.crop((left, top, left + side, top + side)).resize((256, 256))
                if number % 4 == 0:
                    part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
                part.save(folder / path.stem / f"{number:02}.jpg", quality=92)


def save(picture: Image.Image, name: str) -> None:
    """Write a picture as JPEG, as good as its size in bytes allows."""
    if picture.width > MAX_WIDTH_PX:
        picture = picture.resize((MAX_WIDTH_PX, round(picture.height * MAX_WIDTH_PX / picture.width)), Image.Resampling.LANCZOS)
    for quality in range(90, 20, -5):
        file = io.BytesIO()
        picture.convert("RGB").save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() <= MAX_NBYTES:
            break
    PICTURES.mkdir(exist_ok=True)
    (PICTURES / name).write_bytes(file.getvalue())
    print(f"{PICTURES / name}: {file.tell() / 1e3:.0f} kB")


def screenshot(page: Path) -> Image.Image:
    """The report in a browser, with an image chosen."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 1280, "height": 800})
        tab.goto(f"file://{page}")
        tab.wait_for_selector("html[data-ready=yes]")
        tab.locator("#find").fill("astronaut/03")
        tab.locator("#find").fill("")
        tab.wait_for_timeout(500)
        picture = Image.open(io.BytesIO(tab.screenshot()))
        browser.close()
    return picture


def main() -> None:
    """Make every picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--weights")
    parser.add_argument("--random-weights", type=int)
    arguments = parser.parse_args()
    model: dict[str, Any] = {key: value for key, value in vars(arguments).items() if value is not None}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = photographs(folder / "photos")
        backbone = load(arguments.model, weights=arguments.weights, random_seed=arguments.random_weights).module
        dx.embed(folder / "photos", folder / "photos.h5", tokens="cls,patch", preprocess="native", size=str(SIZE), **model)
        with dx.open(folder / "photos.h5") as store:
            save(pca(store).grid(), "pca.jpg")
            left, right = (store.paths.index(f"motorcycle_{side}.png") for side in ("left", "right"))
            found = match_patches(store.patch_features[left], store.patch_features[right]).first(40, spacing=2)
        save(found.picture(*(see(path, backbone, size=SIZE).picture for path in paths[-2:])), "match.jpg")
        save(attention_maps(backbone, see(paths[0], backbone, size=SIZE)).picture(), "attention.jpg")
        crops_of(paths, folder / "crops")
        dx.embed(folder / "crops", folder / "crops.h5", **model)
        save(screenshot(Path(report(folder / "crops.h5").path)), "report.jpg")


if __name__ == "__main__":
    main()
