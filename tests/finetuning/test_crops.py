"""Crops are drawn with the official probabilities and ranges."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dino_extract.finetuning.config import CropConfig
from dino_extract.finetuning.crops import CropParams, draw_crops

DRAWS = 3000


def rngs(count: int) -> list[np.random.Generator]:
    """A generator for each of some images."""
    return [np.random.default_rng((0, image)) for image in range(count)]


def sizes(size: tuple[int, int], count: int) -> NDArray[np.int32]:
    """The size of some images that are all alike."""
    return np.tile(np.array(size, np.int32), (count, 1))


@pytest.fixture(scope="module")
def drawn() -> dict[str, tuple[CropParams, CropParams]]:
    """Many draws with each blur setting for images of 200 x 300 pixels."""
    result = {}
    for setting in ("nominal", "released", "off"):
        result[setting] = draw_crops(rngs(DRAWS), sizes((200, 300), DRAWS), CropConfig(blur=setting))  # type: ignore[arg-type]
    return result


def largest_gap(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """The largest difference between the cumulative distributions of two samples."""
    places = np.concatenate([one, other])
    return float(max(abs(np.mean(one <= place) - np.mean(other <= place)) for place in places[::7]))


Drawn = dict[str, tuple[CropParams, CropParams]]


@pytest.mark.parametrize(("setting", "want"), [("nominal", [1.0, 0.1, 0.5]), ("released", [0.0, 0.9, 0.5]), ("off", [0, 0, 0])])
def test_blur_probabilities(drawn: Drawn, setting: str, want: list[float]) -> None:
    """The two global crops and the local ones are blurred as often as the setting says."""
    crops, local = drawn[setting]

    assert (crops.sigma > 0).mean(axis=0) == pytest.approx(want[:2], abs=0.03)
    assert (local.sigma > 0).mean() == pytest.approx(want[2], abs=0.02)


def test_flip_gray_jitter_and_solarize_probabilities(drawn: Drawn) -> None:
    """Crops are mirrored with 0.5, jittered with 0.8, grey with 0.2; only the second global crop is solarized, with 0.2."""
    crops, local = drawn["nominal"]

    assert crops.flip.mean() == pytest.approx(0.5, abs=0.03)
    assert (crops.jitter[..., 0] != 1).mean() == pytest.approx(0.8, abs=0.03)
    assert local.grayscale.mean() == pytest.approx(0.2, abs=0.02)
    assert crops.solarize.mean(axis=0) == pytest.approx([0, 0.2], abs=0.03)
    assert not local.solarize.any()


def test_jitter_factors_fill_their_ranges(drawn: Drawn) -> None:
    """Factors are uniform in 0.6-1.4, 0.6-1.4, 0.8-1.2 and the hue shift in -0.1-0.1."""
    jitter = drawn["nominal"][1].jitter.reshape(-1, 4)
    jitter = jitter[jitter[:, 0] != 1]

    for values, (low, high) in zip(jitter.T, [(0.6, 1.4), (0.6, 1.4), (0.8, 1.2), (-0.1, 0.1)], strict=True):
        assert largest_gap(values, np.linspace(low, high, DRAWS)) < 0.03


@pytest.mark.parametrize(("which", "scale"), [(0, (0.32, 1.0)), (1, (0.05, 0.32))])
def test_boxes_are_distributed_as_torchvisions(drawn: Drawn, which: int, scale: tuple[float, float]) -> None:
    """Area, aspect ratio and place of the boxes come from the same distribution as RandomResizedCrop's."""
    transforms = pytest.importorskip("torchvision.transforms")
    torch.manual_seed(0)
    image = torch.empty(3, 200, 300)
    theirs = np.array([transforms.RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(DRAWS)], float)

    ours = np.round(drawn["nominal"][which].box[:, 0] * (200, 300, 200, 300))

    for measure in (lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 3] / b[:, 2], lambda b: b[:, 0], lambda b: b[:, 1]):
        assert largest_gap(measure(ours), measure(theirs)) < 1.95 * np.sqrt(2 / DRAWS)  # Kolmogorov-Smirnov at 0.1 %


def test_boxes_lie_within_the_image(drawn: Drawn) -> None:
    """No box leaves the image."""
    box = drawn["nominal"][1].box

    assert box.min() >= 0
    assert (box[..., :2] + box[..., 2:]).max() <= 1 + 1e-6


def test_an_image_too_narrow_for_any_box_gives_the_largest_centred_one() -> None:
    """A strip of 20 x 900 pixels gives boxes 20 high and 27 wide in its middle."""
    params, _ = draw_crops(rngs(1), sizes((20, 900), 1), CropConfig())

    assert params.box[0, 0] * (20, 900, 20, 900) == pytest.approx([0, 436, 20, 27], abs=1)


def test_crops_of_an_image_do_not_depend_on_the_others() -> None:
    """An image alone has the crops that it has among images of other sizes."""
    several = np.array([(50, 60), (900, 20), (7, 7)], np.int32)
    together = draw_crops(rngs(3), several, CropConfig())

    for image in range(3):
        alone = draw_crops([rngs(3)[image]], several[image : image + 1], CropConfig())
        for one, all_of_them in zip(alone, together, strict=True):
            for entry in fields(CropParams):
                np.testing.assert_array_equal(getattr(one, entry.name)[0], getattr(all_of_them, entry.name)[image])
