"""The small model that comes with the project: what its features mean, on real photographs."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

import dino_extract as dx
from dino_extract.config import IMAGENET_MEAN, IMAGENET_STD
from dino_extract.weights.loading import load
from tests.sample_images import real_photographs

PIXELS_LEAVE_ONE_OUT = 0.553  # weighted kNN, k 20, of 16 x 16 RGB pixels of the same photographs


def embed(source: Path, output: Path) -> tuple[list[str], np.ndarray]:
    """Paths and normalised CLS tokens (N, D) of the images under `source`."""
    dx.embed(str(source), str(output), model="tiny", offline=True, device="cpu", workers=1)
    with dx.open(str(output)) as store:
        features = np.asarray(store["features"][:], np.float32)
        return list(store.paths), features / np.linalg.norm(features, axis=1, keepdims=True)


def test_it_is_there_without_a_network() -> None:
    """`tiny` loads from the folder of the package, with the size that it is best given."""
    loaded = load("tiny", offline=True)

    assert loaded.weights_source.startswith("bundled: ")
    assert loaded.size == 280


def test_parts_of_a_photograph_find_each_other(tmp_path: Path) -> None:
    """The nearest neighbour of a part of a photograph is a part of the same one, nine times in ten."""
    rng = np.random.default_rng(0)
    for name, picture in real_photographs().items():
        (tmp_path / "parts" / name).mkdir(parents=True)
        side = min(picture.size) * 6 // 10
        for number in range(10):
            left, top = (int(rng.integers(0, length - side)) for length in picture.size)
            picture.crop((left, top, left + side, top + side)).save(tmp_path / "parts" / name / f"{number}.png")

    paths, features = embed(tmp_path / "parts", tmp_path / "parts.h5")

    similarity = features @ features.T
    np.fill_diagonal(similarity, -1)
    names = np.array([path.split("/")[0] for path in paths])
    assert (names[similarity.argmax(axis=1)] == names).mean() >= 0.9


def test_a_copy_is_nearer_than_any_other_photograph(tmp_path: Path) -> None:
    """Photographs saved again as JPEG of quality 40 and at half the size are found by `dedup`, and nothing else is."""
    (tmp_path / "copies").mkdir()
    for name, picture in real_photographs().items():
        picture.save(tmp_path / "copies" / f"{name}_original.png")
        picture.save(tmp_path / "copies" / f"{name}_jpeg.jpg", quality=40)
        picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BICUBIC).save(tmp_path / "copies" / f"{name}_half.png")

    paths, features = embed(tmp_path / "copies", tmp_path / "copies.h5")

    names = np.array([path.rsplit("_", 1)[0] for path in paths])
    same = names[:, None] == names[None, :]
    similarity = features @ features.T
    assert similarity[same].min() > 0.95
    assert similarity[~same].max() < 0.8


def test_materials_are_told_apart_better_than_by_pixels(shared_dir: Path, tmp_path: Path) -> None:
    """Leave-one-out kNN on TrashNet is well above that of the pixels."""
    embed(shared_dir / "images" / "trashnet.tar", tmp_path / "trashnet.h5")

    (score,) = dx.knn(tmp_path / "trashnet.h5", k=(20,)).scores
    assert score.top1 > PIXELS_LEAVE_ONE_OUT + 0.15


def test_pca_tells_a_thing_from_a_plain_ground(shared_dir: Path) -> None:
    """The first component of patch tokens orders patches of the thing before those of the ground, in nine of ten pairs.

    The ground is plain, so colours would do as well: of crowded scenes nothing is promised.
    """
    side, backbone = 168, load("tiny", offline=True).module
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    areas = []
    for picture in trashnet_pictures(shared_dir, side, every=6):
        pixels = np.asarray(picture, np.float32)
        frame = np.concatenate([edge.reshape(-1, 3) for edge in (pixels[:8], pixels[-8:], pixels[:, :8], pixels[:, -8:])])
        is_far = np.abs(pixels - np.median(frame, axis=0)).sum(-1) > 90
        thing = is_far.reshape(side // 14, 14, side // 14, 14).mean((1, 3)) > 0.5
        if not 0.15 < thing.mean() < 0.5 or np.concatenate([thing[0], thing[-1], thing[:, 0], thing[:, -1]]).mean() > 0.05:
            continue  # fills the picture, or lies on something
        with torch.inference_mode():
            tokens = backbone((torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255 - mean) / std).patches[0].numpy()
        tokens = tokens - tokens.mean(axis=0)
        first = tokens @ np.linalg.svd(tokens, full_matrices=False)[2][0]
        is_before = (first[thing.ravel()][:, None] > first[~thing.ravel()][None, :]).mean()
        areas.append(max(is_before, 1 - is_before))

    assert len(areas) >= 3
    assert np.mean(areas) > 0.9


def trashnet_pictures(shared_dir: Path, side: int, *, every: int) -> Iterator[Image.Image]:
    """The middle square of some of the photographs, resized."""
    with tarfile.open(shared_dir / "images" / "trashnet.tar") as archive:
        for member in [each for each in archive.getmembers() if each.name.endswith(".jpg")][::every]:
            file = archive.extractfile(member)
            assert file is not None
            yield ImageOps.fit(Image.open(file).convert("RGB"), (side, side), Image.Resampling.BICUBIC)
