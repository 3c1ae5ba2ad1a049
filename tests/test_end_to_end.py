"""From a checkpoint file and photographs to the HDF5 file, against a plain transcription of the official evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from dino_extract.embedding.pipeline import embed
from dino_extract.store import open_store
from dino_extract.weights import load_backbone

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def save_photographs(folder: Path, count: int) -> list[Path]:
    """JPEGs of smooth random colours in several shapes."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        path = folder / f"{number}.jpg"
        coarse.resize((300 + 70 * number, 400 - 50 * number), Image.Resampling.BICUBIC).save(path, quality=95)
        paths.append(path)
    return paths


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("vits14", (224, 224)),
        ("vits14-reg", (224, 224)),
        ("vits14", (518, 518)),
        ("vits14-reg", (224, 336)),
        pytest.param("vitb14", (224, 224), marks=pytest.mark.slow),
        pytest.param("vitb14-reg", (518, 518), marks=pytest.mark.slow),
        pytest.param("vitg14", (224, 224), marks=pytest.mark.slow),
    ],
)
def test_features_of_a_checkpoint_equal_the_plain_evaluation(model: str, size: tuple[int, int], tmp_path: Path) -> None:
    """An official-layout `.pth` through `embed` in float32 gives what resize, crop, normalise and the reference network give."""
    paths = save_photographs(tmp_path / "photos", 2 if model.startswith("vitg") else 4)
    reference = load_backbone(model, random_weights=3)
    torch.save(reference.state_dict(), tmp_path / "official.pth")
    height, width = size
    is_square = height == width
    shape = [
        transforms.Resize(round(height * 256 / 224) if is_square else size, transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(size),
    ]
    official = transforms.Compose([*shape, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    embed(
        tmp_path / "photos",
        tmp_path / "x.h5",
        weights=str(tmp_path / "official.pth"),
        tokens="cls,patch",
        size=f"{height}x{width}",
        preprocess="crop" if is_square else "squash",
        dtype="float32",
        store_dtype="float32",
    )

    with torch.inference_mode():
        want = [reference(official(Image.open(path).convert("RGB"))[None]) for path in paths]
    with open_store(tmp_path / "x.h5") as store:
        for row, tokens in enumerate(want):
            compare(store.features[row], tokens.cls[0].numpy())
            compare(store.patch_features[row].reshape(-1, tokens.cls.shape[-1]), tokens.patches[0].numpy())


def compare(got: np.ndarray, want: np.ndarray) -> None:
    """Tokens agree to the rounding of float32."""
    norm = np.linalg.norm(want, axis=-1)
    cosine = (got * want).sum(axis=-1) / norm / np.linalg.norm(got, axis=-1)
    difference = np.abs(got - want).max(axis=-1) / norm
    assert cosine.min() >= 0.99999
    assert difference.max() <= 2e-4
