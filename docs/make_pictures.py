"""Make the images and the quoted outputs of the documentation: `python docs/make_pictures.py PHOTOS [--work FOLDER]`.

PHOTOS holds two public sets of photographs, each as a folder or a tar file: TrashNet as `trashnet/all/LABEL/*.jpg` and the Grocery Store
Dataset as `grocery/{train,val,test}/LABEL/*.jpg`. The figures come from these sets. The images show photographs of scikit-image.

In the pages, every line after `$ ` in a block marked `console` is run, in the order of `PAGES`. Its output replaces the lines below it.
Lines after `> ` belong to the command above. Notes and progress go to stderr and are left out.

Needs scikit-image, pandas, pyarrow, matplotlib, and playwright with Chromium for the image of the report. Seven minutes on two cores.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import dino_extract as dx
from dino_extract.pictures.attention import attention_maps
from dino_extract.pictures.calibration import ALTERATIONS
from dino_extract.pictures.match import match_patches
from dino_extract.pictures.model_input import input_image
from dino_extract.pictures.pca import pca
from dino_extract.pictures.report import report
from dino_extract.weights.loading import load

MODEL = "tiny"
DOCS = Path(__file__).parent
PICTURES = DOCS / "pictures"
PAGES = (
    "knn",
    "linear",
    "search",
    "dedup",
    "outliers",
    "cluster",
    "export",
)  # a page may use files that the commands of an earlier page wrote
FROM_COMMANDS = {  # image of a page -> file that a command of a page writes
    "knn.png": "confusion.png",
    "linear.png": "linear.png",
    "search.jpg": "found.png",
    "dedup.jpg": "groups.png",
    "cluster.jpg": "clusters/clusters.png",
}
MAX_NBYTES = 150_000  # of one image, to keep the repository small
MAX_WIDTH_PX = 1200
SIZE = 448  # pixels; twice the usual side gives four times the patches
CROPS = 24  # of each photograph on the map of the report


def photographs(folder: Path) -> list[Path]:
    """Photographs of scikit-image, as files; the two motorcycles are one scene seen by two cameras."""
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
        with Image.open(path) as image:
            for number in range(CROPS):
                side = int(min(image.size) * random.uniform(0.4, 0.9))
                left, top = (int(random.integers(0, length - side + 1)) for length in image.size)
                part = image.crop((left, top, left + side, top + side)).resize((256, 256))
                if number % 4 == 0:
                    part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
                part.save(folder / path.stem / f"{number:02}.jpg", quality=92)


def copies_of(paths: list[Path], folder: Path) -> None:
    """A folder with the photographs, and altered copies of each."""
    folder.mkdir()
    for path in paths:
        with Image.open(path) as image:
            image.save(folder / f"{path.stem}.png")
            for kind, (_, alter) in ALTERATIONS.items():
                alter(image).save(folder / f"{path.stem}_{kind}.png")


def unpack(photos: Path, name: str, work: Path) -> None:
    """Put one of the sets of photographs into the folder where commands run."""
    if (photos / name).is_dir():
        (work / name).symlink_to((photos / name).resolve())
        return
    with tarfile.open(photos / f"{name}.tar") as archive:
        archive.extractall(work, filter="data")


def rerun(text: str, work: Path) -> str:
    """The text of a page with the present outputs of its commands."""
    return re.sub(r"(?<=```console\n).*?(?=```)", lambda block: "".join(transcript(block[0], work)), text, flags=re.DOTALL)


def transcript(block: str, work: Path) -> list[str]:
    """Run each command of a block in a folder; return the commands and what they print."""
    shown = []
    for command in re.findall(r"^\$ .*\n(?:> .*\n)*", block, flags=re.MULTILINE):
        print(command, end="", flush=True)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        words = re.sub(r"^[$>] ", "", command, flags=re.MULTILINE)
        done = subprocess.run(["bash", "-c", words], cwd=work, env={**os.environ, "PATH": path}, capture_output=True, text=True)
        if done.returncode or not done.stdout:  # where `head` ends a command, its code is that of `head`
            raise SystemExit(f"{command}ended with {done.returncode}:\n{done.stderr}")
        shown += [command, done.stdout]
    return shown


def save(image: Image.Image, name: str) -> None:
    """Write an image as JPEG, with the best quality that its size in bytes allows."""
    if image.width > MAX_WIDTH_PX:
        image = image.resize((MAX_WIDTH_PX, round(image.height * MAX_WIDTH_PX / image.width)), Image.Resampling.LANCZOS)
    for quality in range(90, 20, -5):
        file = io.BytesIO()
        image.convert("RGB").save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() <= MAX_NBYTES:
            break
    PICTURES.mkdir(exist_ok=True)
    (PICTURES / name).write_bytes(file.getvalue())
    print(f"{PICTURES / name}: {file.tell() / 1e3:.0f} kB")


def save_as_made(source: Path, name: str) -> None:
    """Copy an image that a command wrote: charts as they are, photographs as JPEG."""
    if name.endswith(".png"):
        shutil.copyfile(source, PICTURES / name)
        return
    with Image.open(source) as image:
        save(image, name)


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
        image = Image.open(io.BytesIO(tab.screenshot()))
        browser.close()
    return image


def show_patches(paths: list[Path], folder: Path) -> None:
    """Draw patch tokens: PCA, matches between the two views of one scene, attention."""
    backbone = load(MODEL).module
    dx.embed(folder / "photos", folder / "photos.h5", model=MODEL, tokens="cls,patch", preprocess="native", size=str(SIZE))
    with dx.open(folder / "photos.h5") as store:
        save(pca(store).grid(), "pca.jpg")
        left, right = (store.paths.index(f"motorcycle_{side}.png") for side in ("left", "right"))
        images = tuple(input_image(path, backbone, size=SIZE).picture for path in paths[-2:])
        found = match_patches(store.patch_features[left], store.patch_features[right], images=images).first(40, spacing=2)
    save(found.picture(), "match.jpg")
    save(attention_maps(backbone, input_image(paths[0], backbone, size=SIZE)).picture(), "attention.jpg")


def make(photos: Path, work: Path) -> None:
    """Make every image and output; `work` is an empty folder."""
    paths = photographs(work / "photos")
    crops_of(paths, work / "crops")
    copies_of(paths, work / "album")
    for name in ("trashnet", "grocery"):
        unpack(photos, name, work)
    show_patches(paths, work)
    for page in PAGES:
        file = DOCS / f"{page}.md"
        file.write_text(rerun(file.read_text("utf-8"), work), "utf-8")
    for name, source in FROM_COMMANDS.items():
        save_as_made(work / source, name)
    save(screenshot(Path(report(work / "crops.h5").path)), "report.jpg")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, metavar="PHOTOS")
    parser.add_argument("--work", type=Path, help="empty folder to run the commands in, kept; by default a temporary one")
    arguments = parser.parse_args()
    if arguments.work:
        make(arguments.photos, arguments.work.resolve())
        return
    with tempfile.TemporaryDirectory() as folder:
        make(arguments.photos, Path(folder))


if __name__ == "__main__":
    main()
