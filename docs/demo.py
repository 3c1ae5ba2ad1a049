"""`make demo`: embed photographs with the small model, draw their neighbours and patch tokens, and write a page, all in demo/."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from skimage import data

FOLDER = Path("demo")
# Photographs of scikit-image. Each is cut into overlapping views, which should find each other.
PHOTOGRAPHS = (
    "astronaut",
    "chelsea",
    "coffee",
    "rocket",
    "retina",
    "immunohistochemistry",
    "hubble_deep_field",
    "grass",
    "gravel",
    "brick",
)
VIEWS = {"left": (0.0, 0.05, 0.7, 0.9), "right": (0.3, 0.1, 1.0, 0.95), "whole": (0.0, 0.0, 1.0, 1.0)}  # parts of width and height


def save_photographs(folder: Path) -> None:
    """Three views of each photograph, as JPEG."""
    for name in PHOTOGRAPHS:
        image = Image.fromarray(getattr(data, name)()).convert("RGB")
        image.thumbnail((640, 640))
        for view, (left, top, right, bottom) in VIEWS.items():
            box = (left * image.width, top * image.height, right * image.width, bottom * image.height)
            path = folder / name / f"{view}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.crop(tuple(map(round, box))).save(path, quality=92)


def run(*words: str) -> None:
    """Run a command as a user would, showing it first."""
    print(f"\n$ dino-extract {' '.join(words)}", flush=True)
    subprocess.run([str(Path(sys.executable).parent / "dino-extract"), *words], check=True)


def main() -> None:
    """Delete demo/ and make it again."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    photos, file = str(FOLDER / "photos"), str(FOLDER / "photos.h5")
    save_photographs(FOLDER / "photos")
    run("embed", photos, "--model", "tiny", "-o", file)
    run("info", file)
    run("search", file, "--path", "chelsea/left.jpg", "--top", "5", "--sheet", str(FOLDER / "neighbours.png"))
    patches = str(FOLDER / "patches.h5")
    few = [f"{photos}/{name}" for name in ("astronaut", "chelsea")]
    run("embed", *few, "--model", "tiny", "--tokens", "patch", "--size", "448", "-o", patches)
    run("pca", patches, "--keep-background", "-o", str(FOLDER / "pca"))
    run("report", file, "-o", str(FOLDER / "report.html"))
    print(f"\nLook at {FOLDER}/neighbours.png and {FOLDER}/pca/grid.png, and open {FOLDER}/report.html in a browser")


if __name__ == "__main__":
    main()
