"""Which image comes when, and with which crops, depends on the seed alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dino_extract.errors import ConfigError, SourceError
from dino_extract.finetuning.config import CropConfig
from dino_extract.finetuning.data import Decoded, Order, Share, TrainingData
from dino_extract.images.decoder import parent
from dino_extract.images.finding import find_images
from tests.decoders import child_that_dies
from tests.finetuning import runs

CROPS = CropConfig(global_crops_size=28, local_crops_size=14, local_crops_number=2)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve small JPEGs."""
    return runs.make_pictures(tmp_path_factory.mktemp("photos") / "pictures", 12)


def decoded(pictures: Path, share: Share, *, first_step: int = 0, last_step: int = 2) -> list[Decoded]:
    """All batches that a process with this share gets."""
    manifest = find_images([str(pictures)])
    order = Order(len(manifest), share.global_batch, 0)
    with TrainingData(manifest, order, share, CROPS, 14, first_step=first_step, last_step=last_step, workers=1) as data:
        return list(data)


def test_every_epoch_shows_every_image_once() -> None:
    """The steps of an epoch are a permutation of all images, another one in the next epoch."""
    order = Order(20, 5, seed=3)

    first, second = (np.concatenate([order.rows(epoch * 4 + step) for step in range(4)]) for epoch in range(2))

    assert sorted(first) == sorted(second) == list(range(20))
    assert first.tolist() != second.tolist()


def test_a_batch_larger_than_the_folder_is_refused() -> None:
    """Sixteen images for a batch of 64 are too few, and the message has both numbers."""
    with pytest.raises(ConfigError, match="a batch takes 64 images, there are 16"):
        Order(16, 64, 0)


def test_ranks_and_accumulation_share_one_order() -> None:
    """The rows of two ranks with two accumulated batches each are the rows of the step, each once."""
    order = Order(24, 8, seed=1)

    parts = [order.my_rows(2, Share(2, accumulation=2, rank=rank, world_size=2)) for rank in range(2)]

    assert sorted(np.concatenate(parts, axis=None)) == sorted(order.rows(2))


def test_two_processes_get_the_batch_of_one(pictures: Path) -> None:
    """Pixels, crops and masks of two half batches are those of the whole batch."""
    (whole,) = decoded(pictures, Share(4), last_step=1)

    halves = [decoded(pictures, Share(2, rank=rank, world_size=2), last_step=1)[0] for rank in range(2)]

    assert np.array_equal(np.concatenate([half.pixels for half in halves]), whole.pixels)
    assert np.array_equal(np.concatenate([half.local_params.box for half in halves]), whole.local_params.box)
    masks = torch.stack([half.masks.unflatten(0, (2, 2)) for half in halves], dim=1).flatten(0, 2)
    assert torch.equal(masks, whole.masks)


def test_starting_later_gives_the_same_batches(pictures: Path) -> None:
    """A run continued at step 1 sees what an undisturbed one sees from there."""
    everything = decoded(pictures, Share(4), last_step=3)

    rest = decoded(pictures, Share(4), first_step=1, last_step=3)

    for one, other in zip(everything[1:], rest, strict=True):
        assert np.array_equal(one.pixels, other.pixels)
        assert np.array_equal(one.global_params.jitter, other.global_params.jitter)
        assert torch.equal(one.masks, other.masks)


def test_a_batch_has_its_crops_and_masks_in_the_shapes_of_the_objective(pictures: Path) -> None:
    """Two global crops and two local ones of four images, and masks of a 2 x 2 grid."""
    batch = decoded(pictures, Share(4), last_step=1)[0].batch(CROPS, torch.device("cpu"))

    assert batch.global_crops.shape == (8, 3, 28, 28)
    assert batch.local_crops.shape == (8, 3, 14, 14)
    assert batch.masks.shape == (8, 4)
    assert batch.mask_indices.tolist() == batch.masks.flatten().nonzero().flatten().tolist()


def test_a_substitute_is_the_same_on_every_run(tmp_path: Path) -> None:
    """Unreadable images are replaced by the same others when the run is repeated."""
    folder = runs.make_pictures(tmp_path / "pictures", 8, broken=3)

    one, other = (decoded(folder, Share(8), last_step=2) for _ in range(2))

    for first, second in zip(one, other, strict=True):
        assert np.array_equal(first.pixels, second.pixels)
        assert all(image.any() for image in first.pixels)


def test_a_substitute_that_kills_its_decoder_is_told_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images at which decoders die are replaced, and every one of them says how its decoder ended."""
    folder = runs.make_pictures(tmp_path / "pictures", 16)
    survivor = min(path.name for path in folder.iterdir()).encode()
    monkeypatch.setattr(parent, "CHILD_PROGRAM", child_that_dies("os.kill(os.getpid(), 11)", when=f"ref.key != {survivor!r}"))

    (batch,) = decoded(folder, Share(2), last_step=1)

    assert len(batch.failures) > 2  # those of the batch, and substitutes
    assert set(batch.failures.values()) == {"decode: decoder crashed (signal 11)"}


def test_a_batch_tells_what_could_not_be_read_for_it(tmp_path: Path) -> None:
    """A broken image is told once, with the batch that it was for, however far ahead the decoders are."""
    folder = runs.make_pictures(tmp_path / "pictures", 24, broken=1)
    order = Order(24, 4, 0)

    with TrainingData(find_images([str(folder)]), order, Share(4), CROPS, 14, first_step=0, last_step=12, workers=1) as data:
        told = [list(batch.failures) for batch in data]

    assert told == [[23] if 23 in order.rows(step) and step < order.steps_per_epoch else [] for step in range(12)]
    assert told[0] == []


def test_a_folder_without_a_readable_image_is_an_error(tmp_path: Path) -> None:
    """When nothing can be decoded the run ends with an error instead of black pictures."""
    folder = runs.make_pictures(tmp_path / "pictures", 4, broken=4)

    with pytest.raises(SourceError, match="could not be read"):
        decoded(folder, Share(4), last_step=1)
