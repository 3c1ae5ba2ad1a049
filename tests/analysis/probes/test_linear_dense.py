"""Dense probes on patch tokens that hold the answer, and targets that follow their images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dino_extract.analysis.probes.dense_head import DenseHead
from dino_extract.analysis.probes.dense_targets import IGNORED, DenseTargets
from dino_extract.analysis.probes.linear_dense import linear_dense
from dino_extract.analysis.probes.probe import Probe
from dino_extract.errors import ConfigError, SourceError, StoreError
from dino_extract.images.preprocess import Preprocess, preprocess
from dino_extract.store import open_store
from tests.analysis.stores import write_store

CROP = json.dumps(Preprocess(height=56, width=56).as_record())
SQUASH = json.dumps(Preprocess(policy="squash", height=56, width=56).as_record())


def scene(tmp_path: Path, *, count: int = 12, kind: str = "mask", model: str = "vits14") -> tuple[str, Path]:
    """A store of 4 x 4 patch tokens that say linearly what each patch shows, and a folder with the pixels they stand for."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "targets"
    (folder / "a").mkdir(parents=True, exist_ok=True)
    classes = rng.integers(0, 3, (count, 4, 4))
    basis = rng.standard_normal((3, 8))
    patches = basis[classes] + 0.05 * rng.standard_normal((count, 4, 4, 8))
    keys = [f"a/{row:03}.jpg" for row in range(count)]
    for row, key in enumerate(keys):
        pixels = np.kron(classes[row], np.ones((14, 14), np.uint8)).astype(np.uint8)
        stem = folder / key.removesuffix(".jpg")
        if kind == "mask":
            Image.fromarray(pixels).save(f"{stem}.png")
        else:
            np.save(f"{stem}.npy", (1.0 + 2.0 * pixels).astype(np.float32))
    size = np.full((count, 2), 56)
    arrays = {"patch_features": patches.astype(np.float16)}
    path = write_store(tmp_path / f"{model}.h5", keys, arrays, model=model, image_size=size, attrs={"preprocessing": SQUASH})
    return path, folder


def test_classes_that_patches_encode_are_learned(tmp_path: Path) -> None:
    """Where patch tokens say what they show, the intersection over union is high for every class; only patch borders are uncertain."""
    path, folder = scene(tmp_path)

    result = linear_dense(path, folder, iterations=150)

    assert result.metrics["miou"] > 0.7
    assert result.metrics["pixel_accuracy"] > 0.8
    assert len(result.class_iou) == 3
    assert (result.num_train, result.num_test) == (10, 2)


def test_depths_that_patches_encode_are_learned(tmp_path: Path) -> None:
    """Depths of 1, 3 and 5 are measured far better than by their mean, whose error is 1.6."""
    path, folder = scene(tmp_path, kind="depth")

    result = linear_dense(path, folder, task="depth", max_depth=6.0, iterations=300)

    assert result.metrics["rmse"] < 1.0
    assert 0.0 < result.metrics["abs_rel"] < 0.4


def test_a_class_that_only_test_masks_have_counts_as_zero(tmp_path: Path) -> None:
    """The mean is over the classes of the data set, as in mmsegmentation, and not over those alone that could be learned."""
    path, folder = scene(tmp_path)
    shutil.copytree(folder, other := tmp_path / "other")
    for file in (other / "a").iterdir():
        pixels = np.array(Image.open(file))
        pixels[:28] = 3
        Image.fromarray(pixels).save(file)

    result = linear_dense(path, folder, path, other, iterations=150)

    assert len(result.class_iou) == 4
    assert result.class_iou[3] == 0.0
    assert result.metrics["miou"] == pytest.approx(sum(result.class_iou) / 4)
    assert result.metrics["miou"] < 0.4
    assert result.metrics["pixel_accuracy"] <= 0.5


def test_depths_that_are_not_finite_are_unknown(tmp_path: Path) -> None:
    """The sky, infinitely far, gives the result that zeros in its place give."""
    path, folder = scene(tmp_path, kind="depth")
    shutil.copytree(folder, zeros := tmp_path / "zeros")
    for file in (folder / "a").iterdir():
        depth = np.load(file)
        depth[:20] = 0
        np.save(zeros / "a" / file.name, depth)
        depth[:20], depth[0, 0] = np.inf, np.nan
        np.save(file, depth)

    found, expected = (linear_dense(path, each, task="depth", iterations=20).metrics for each in (folder, zeros))

    assert found == expected
    assert np.isfinite(found["rmse"])


def test_shuffled_targets_cannot_be_learned(tmp_path: Path) -> None:
    """With the targets of other images the probe does no better than chance: it cannot know the test masks."""
    path, folder = scene(tmp_path, count=20)
    files = sorted((folder / "a").iterdir())
    pixels = [np.asarray(Image.open(file)) for file in files]
    for file, other in zip(files, pixels[7:] + pixels[:7], strict=True):
        Image.fromarray(other).save(file)

    result = linear_dense(path, folder, iterations=60)

    assert result.metrics["miou"] < 0.4


@pytest.mark.parametrize("policy", ["crop", "squash", "pad"])
def test_targets_are_cut_as_their_images(tmp_path: Path, policy: str) -> None:
    """A target that is the image's own brightness stays so after both went their way."""
    image = np.add.outer(np.arange(90), np.arange(120)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "x.png")
    options = Preprocess(policy=policy, height=56, width=56)  # type: ignore[arg-type]  # one of the literals
    targets = DenseTargets(tmp_path, "segmentation", {"preprocessing": json.dumps(options.as_record())})

    seen = targets.read("x.jpg", (90, 120))

    pixels = preprocess(np.repeat(image[:, :, None], 3, axis=2), options)[:, :, 0].astype(int)
    inside = seen != IGNORED
    assert seen.shape == (56, 56)
    assert np.abs(pixels - seen)[inside].mean() < 2.0
    assert inside.mean() == pytest.approx(0.75 if policy == "pad" else 1.0)


def test_depths_are_scaled(tmp_path: Path) -> None:
    """16-bit millimetres become metres."""
    Image.fromarray(np.full((60, 60), 2500, np.uint16)).save(tmp_path / "x.png")

    depth = DenseTargets(tmp_path, "depth", {"preprocessing": CROP}, depth_scale=1000.0).read("x.jpg", (60, 60))

    assert depth.dtype == np.float32
    assert np.unique(depth).tolist() == [2.5]


def test_images_without_a_target_are_counted(tmp_path: Path) -> None:
    """A missing mask leaves its image out."""
    path, folder = scene(tmp_path)
    (folder / "a" / "003.png").unlink()

    result = linear_dense(path, folder, iterations=1)

    assert (result.num_train + result.num_test, result.without_target) == (11, 1)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((56, 56, 3), np.uint8), r"must have one number per pixel, got shape \(56, 56, 3\)"),
        (np.zeros((56, 90), np.uint8), "is 56 x 90 pixels, its image 56 x 56: not the same shape"),
    ],
)
def test_a_mask_that_does_not_fit_is_named(tmp_path: Path, pixels: np.ndarray, message: str) -> None:
    """A mask in colour or of another shape is an error with its path."""
    path, folder = scene(tmp_path)
    Image.fromarray(pixels).save(folder / "a" / "000.png")

    with pytest.raises(SourceError, match=message):
        linear_dense(path, folder, iterations=1)


def test_depths_are_not_taken_for_masks(tmp_path: Path) -> None:
    """Numbers with fractions are no classes, and so many classes that they would fill the memory are none either."""
    path, folder = scene(tmp_path)
    (folder / "a" / "000.png").unlink()

    np.save(folder / "a" / "000.npy", np.full((56, 56), 1.5))
    with pytest.raises(SourceError, match=r"000\.npy` must have class numbers, got fractions") as caught:
        linear_dense(path, folder, iterations=1)
    assert "`--task depth`" in str(caught.value.hint)
    np.save(folder / "a" / "000.npy", np.full((56, 56), 26_001.0))
    with pytest.raises(ConfigError, match=r"have class numbers up to 26,001, expected at most 1,499"):
        linear_dense(path, folder, iterations=1)


def test_a_folder_of_other_masks_is_refused(tmp_path: Path) -> None:
    """If no image has a mask, the error says which names are expected."""
    path, _ = scene(tmp_path)
    (tmp_path / "empty").mkdir()

    with pytest.raises(ConfigError, match=r"no image of .* has a target image"):
        linear_dense(path, tmp_path / "empty")


def test_a_file_without_patch_tokens_is_refused(tmp_path: Path) -> None:
    """CLS tokens cannot name pixels."""
    _, folder = scene(tmp_path)
    path = write_store(tmp_path / "cls.h5", ["a/000.jpg"], {"features": np.ones((1, 4), np.float32)}, attrs={"preprocessing": SQUASH})

    with pytest.raises(ConfigError, match=r"`features` of .* is not a grid of patch tokens"):
        linear_dense(path, folder, dataset="features")


def test_masks_of_one_class_are_refused(tmp_path: Path) -> None:
    """There is nothing to tell apart."""
    path, folder = scene(tmp_path)
    for file in (folder / "a").iterdir():
        Image.fromarray(np.zeros((56, 56), np.uint8)).save(file)

    with pytest.raises(ConfigError, match=r"segmentation needs two classes or more, the masks in .* have 1"):
        linear_dense(path, folder, iterations=1)


@pytest.mark.parametrize(("kind", "task"), [("mask", "segmentation"), ("depth", "depth")])
def test_a_saved_head_predicts_as_before(tmp_path: Path, kind: str, task: Any) -> None:
    """A loaded head gives the answer of the trained one for the patch tokens of a store, with a class or a depth for each pixel."""
    path, folder = scene(tmp_path, kind=kind)
    head = linear_dense(path, folder, task=task, max_depth=6.0, iterations=300).head

    head.save(tmp_path / "head.safetensors")
    loaded = DenseHead.load(tmp_path / "head.safetensors")

    with open_store(path) as store:
        patches = loaded.inputs_of(store, slice(0, 3))
    answer = loaded.predict(patches, (56, 56))
    np.testing.assert_array_equal(answer, head.predict(patches, (56, 56)))
    target = np.stack([DenseTargets(folder, task, {"preprocessing": SQUASH}).read(f"a/00{row}.jpg", (56, 56)) for row in range(3)])
    assert np.abs(answer - target).mean() < 0.7
    assert answer.dtype == (np.float32 if task == "depth" else np.int64)
    assert repr(loaded) == repr(head)


def test_a_head_is_not_replaced_unasked(tmp_path: Path) -> None:
    """A second `save` needs `overwrite`."""
    path, folder = scene(tmp_path)
    head = linear_dense(path, folder, iterations=1).head
    head.save(tmp_path / "head.safetensors")

    with pytest.raises(ConfigError, match="is already there"):
        head.save(tmp_path / "head.safetensors")
    head.save(tmp_path / "head.safetensors", overwrite=True)


def test_a_classifier_is_not_a_dense_head(tmp_path: Path) -> None:
    """A file of another kind is refused by name."""
    Probe(np.eye(2, dtype=np.float32), np.zeros(2, np.float32), ("a", "b"), ("features",)).save(tmp_path / "probe.safetensors")

    with pytest.raises(StoreError, match=r"`.*probe.safetensors` is not a classifier of embeddings"):
        DenseHead.load(tmp_path / "probe.safetensors")


def test_a_head_refuses_tokens_of_another_model(tmp_path: Path) -> None:
    """A store that is not compatible with the training store is not read."""
    path, folder = scene(tmp_path)
    head = linear_dense(path, folder, iterations=1).head
    other, _ = scene(tmp_path, model="vitb14")

    with open_store(other) as store, pytest.raises(StoreError, match="are not compatible"):
        head.inputs_of(store, slice(0, 1))
