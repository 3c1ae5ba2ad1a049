"""The figures of the monitor are right where the answer is known."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dino_extract.backbone import BackboneConfig, DinoVisionTransformer
from dino_extract.errors import ConfigError
from dino_extract.finetuning import monitor
from dino_extract.finetuning.monitor import History, Monitor
from dino_extract.images.finding import find_images
from dino_extract.images.preprocess import Preprocess


def make_keys(folder: Path, *keys: str) -> Path:
    """A folder with a one-colour image under each key."""
    for key in keys:
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    return folder


def test_effective_rank_of_equal_and_of_orthogonal_directions() -> None:
    """Embeddings on one line have rank 1, and orthogonal ones of equal length as many as there are."""
    line, orthogonal = torch.outer(torch.arange(1.0, 9), torch.ones(8)), torch.eye(8)

    assert monitor.effective_rank(line) == pytest.approx(1, abs=1e-3)
    assert monitor.effective_rank(orthogonal) == pytest.approx(8, abs=1e-3)


def test_feature_std_of_equal_and_of_spread_embeddings() -> None:
    """Equal directions have a spread of 0, random ones of about 1."""
    generator = torch.Generator().manual_seed(0)

    assert monitor.feature_std(torch.ones(10, 4)) == pytest.approx(0, abs=1e-6)
    assert monitor.feature_std(torch.randn(2000, 64, generator=generator)) == pytest.approx(1, abs=0.02)


def test_neighbour_overlap_of_the_same_and_of_shuffled_embeddings() -> None:
    """Nothing changes under a rotation; shuffled images keep k of N neighbours by chance."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(400, 16, generator=generator)
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=generator)).Q

    assert monitor.neighbour_overlap(vectors, vectors @ rotation, 10) == 1
    assert monitor.neighbour_overlap(vectors, vectors[torch.randperm(400, generator=generator)], 10) == pytest.approx(10 / 399, abs=0.02)


def test_knn_equals_a_vote_counted_by_hand() -> None:
    """The accuracy equals a loop over queries that sorts neighbours and adds exp(cosine / 0.07) for each class."""
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(60, 5)), rng.normal(size=(30, 5))
    train_labels, test_labels = rng.integers(0, 4, 60), rng.integers(0, 4, 30)

    arrays = (train.astype(np.float32), train_labels, test.astype(np.float32), test_labels)
    got = monitor.knn_accuracy(*map(torch.from_numpy, arrays))

    right = 0
    for query, label in zip(test, test_labels, strict=True):
        cosines = [float(query @ other / np.linalg.norm(query) / np.linalg.norm(other)) for other in train]
        votes = [0.0] * 4
        for index in sorted(range(60), key=lambda index: -cosines[index])[:20]:
            votes[train_labels[index]] += math.exp(cosines[index] / 0.07)
        right += votes.index(max(votes)) == label
    assert got == pytest.approx(right / 30)


def test_target_entropy_tells_certain_from_undecided() -> None:
    """Certain and even targets give 0 and 1, undecided ones 1 and 1, and certain ones for one prototype 0 and 0."""
    certain, undecided = torch.eye(4), torch.full((4, 4), 0.25)

    assert monitor.target_entropy(certain) == pytest.approx((0, 1))
    assert monitor.target_entropy(undecided) == pytest.approx((1, 1))
    assert monitor.target_entropy(certain[[0, 0, 0]]) == pytest.approx((0, 0))


def test_train_and_test_folders_are_the_two_parts(tmp_path: Path) -> None:
    """Images under `train` are neighbours, those under `test` queries, others neither; the class is the innermost folder."""
    folder = make_keys(tmp_path, "train/cat/1.png", "train/dog/2.png", "test/cat/3.png", "val/dog/4.png")

    labelled = monitor.split_labelled(find_images([str(folder)]), 100)

    keys = labelled.manifest.keys
    assert [keys[row] for row in labelled.train_rows] == [b"train/cat/1.png", b"train/dog/2.png"]
    assert [keys[row] for row in labelled.test_rows] == [b"test/cat/3.png"]
    assert labelled.labels[labelled.test_rows[0]] == labelled.labels[labelled.train_rows[0]]


def test_without_such_folders_one_in_five_is_a_query(tmp_path: Path) -> None:
    """Ten images in two class folders give eight neighbours and two queries, no image in both."""
    folder = make_keys(tmp_path, *(f"{name}/{number}.png" for name in ("cat", "dog") for number in range(5)))

    labelled = monitor.split_labelled(find_images([str(folder)]), 100)

    assert (len(labelled.train_rows), len(labelled.test_rows)) == (8, 2)
    assert not set(labelled.train_rows) & set(labelled.test_rows)


def test_a_few_labelled_images_still_have_a_query(tmp_path: Path) -> None:
    """Of four images one is a query, although a fifth of four is less than one."""
    folder = make_keys(tmp_path, "cat/1.png", "cat/2.png", "dog/3.png", "dog/4.png")

    labelled = monitor.split_labelled(find_images([str(folder)]), 100)

    assert (len(labelled.train_rows), len(labelled.test_rows)) == (3, 1)


def test_figures_of_the_smallest_sets_are_numbers() -> None:
    """A single image keeps all its neighbours, and embeddings that are all zero have rank 1."""
    one = torch.randn(1, 8, generator=torch.Generator().manual_seed(0))

    assert monitor.neighbour_overlap(one, -one, 10) == 1
    assert monitor.effective_rank(one) == pytest.approx(1, abs=1e-3)
    assert monitor.effective_rank(torch.zeros(4, 8)) == pytest.approx(1, abs=1e-3)


def test_a_monitor_without_images_to_read_is_refused(tmp_path: Path) -> None:
    """Training images or labelled images that cannot be read are an error before training starts."""
    folder = make_keys(tmp_path / "good", *(f"{name}/{number}.png" for name in ("cat", "dog") for number in range(3)))
    good, broken = find_images([str(folder)]), shutil.copytree(folder, tmp_path / "broken")
    for path in broken.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:40])
    unreadable = find_images([str(broken)])
    backbone = DinoVisionTransformer(BackboneConfig(embed_dim=12, depth=1, num_heads=2, image_size=14)).eval()
    options = Preprocess("crop", 14, 14, 14)
    rows = np.arange(6)

    with pytest.raises(ConfigError, match="none of the 6 images of the monitor can be read"):
        Monitor(backbone, unreadable, rows, options, workers=1)
    labelled = monitor.split_labelled(unreadable, 100)
    watch = Monitor(backbone, good, rows, options, labelled=labelled, workers=1)
    with pytest.raises(ConfigError, match="`eval` needs labelled images that can be read"):
        watch.evaluate(backbone, 0)


def test_a_folder_without_classes_is_refused(tmp_path: Path) -> None:
    """Images outside of class folders cannot be used for kNN."""
    folder = make_keys(tmp_path, "1.png", "2.png")

    with pytest.raises(ConfigError, match="a folder for each of two or more classes"):
        monitor.split_labelled(find_images([str(folder)]), 100)


def history(*ranks: float) -> History:
    """The history of a run with the given effective ranks."""
    return History("effective_rank", 0.5, [{"step": float(step), "effective_rank": rank} for step, rank in enumerate(ranks)])


def test_two_bad_evaluations_in_a_row_are_a_collapse() -> None:
    """A run has collapsed when its last two evaluations are below half of the best one."""
    assert not history(10, 12, 5).is_collapsed
    assert history(10, 12, 5, 5).is_collapsed
    assert not history(10, 5, 12, 5).is_collapsed


def test_the_best_evaluation_is_the_highest() -> None:
    """The last evaluation is the best one if all before it are lower; a step without an evaluation is never the best."""
    assert history(1, 3, 4).is_best_at(2)
    assert not history(1, 4, 3).is_best_at(2)
    assert not history(1, 3, 4).is_best_at(3)
    assert not history().is_best_at(0)
