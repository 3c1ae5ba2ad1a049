"""A model held ready gives images in memory what `embed` gives files."""

from __future__ import annotations

from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dino_extract as dx
from dino_extract.errors import ConfigError, DecodeError, StoreError
from dino_extract.status import Status
from tests.sample_images import real_photographs

OPTIONS: dict[str, Any] = {"random_weights": 0, "size": "56", "dtype": "float32", "store_dtype": "float32"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five real photographs as PNG, one of them with an EXIF orientation, one with transparency, one 16 bits deep."""
    folder = tmp_path_factory.mktemp("encoder") / "photos"
    folder.mkdir()
    for name, picture in real_photographs().items():
        picture.thumbnail((180, 180))
        exif = Image.Exif()
        if name == "coffee":
            exif[0x0112] = 6
        if name == "rocket":
            picture.putalpha(Image.linear_gradient("L").resize(picture.size))
        if name == "brick":
            picture = Image.fromarray(np.asarray(picture.convert("L"), np.uint16) * 200)
        picture.save(folder / f"{name}.png", exif=exif)
    return folder


@pytest.mark.parametrize("preprocess", ["crop", "squash", "pad"])
def test_it_gives_what_embed_writes(photos: Path, tmp_path: Path, preprocess: str) -> None:
    """Every dataset of a file, with layers, from the paths of its images; from the file itself too, with nothing said twice."""
    options = {**OPTIONS, "tokens": "cls,patch,registers,mean", "layers": "last2", "preprocess": preprocess, "alpha": "white"}
    dx.embed(photos, tmp_path / "x.h5", model="tiny", workers=1, **options)
    encoder, like = dx.Encoder("tiny", **options), dx.Encoder(like=tmp_path / "x.h5")

    with dx.open(tmp_path / "x.h5") as store:
        files = [photos / path for path in store.paths]
        for arrays in (encoder(files), like(files)):
            assert set(arrays) == set(store.names)
            for name in store.names:
                np.testing.assert_allclose(arrays[name], store[name][:], rtol=1e-4, atol=1e-4)


def test_native_patches_are_a_list(photos: Path, tmp_path: Path) -> None:
    """With the whole image in its own shape each has its own patch grid, (h, w, D), which flattened is what the file has."""
    options = {**OPTIONS, "tokens": "cls,patch", "preprocess": "native"}
    dx.embed(photos, tmp_path / "x.h5", model="tiny", workers=1, **options)

    with dx.open(tmp_path / "x.h5") as store:
        arrays = dx.Encoder("tiny", **options)([photos / path for path in store.paths])
        for row, patches in enumerate(arrays["patch_features"]):
            np.testing.assert_allclose(patches, store.patch_features[row], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(arrays["features"], store.features[:], rtol=1e-4, atol=1e-4)


def test_every_form_of_an_image_is_the_same_image(photos: Path) -> None:
    """A path, its bytes, the Pillow image, and its pixels as an array give one and the same embedding; orientation is applied to three."""
    encoder = dx.Encoder("tiny", **OPTIONS)
    path = photos / "coffee.png"
    opened = Image.open(path)
    pixels = np.asarray(opened.convert("RGB").rotate(-90, expand=True))  # what orientation 6 asks for

    features = encoder([path, str(path), path.read_bytes(), opened, pixels])["features"]

    np.testing.assert_allclose(features, np.repeat(features[:1], 5, axis=0), rtol=1e-5, atol=1e-5)
    assert np.linalg.norm(features[0] - encoder(np.asarray(opened.convert("RGB")))["features"]) > 0.1


def test_one_image_several_or_none(photos: Path) -> None:
    """A single image is a batch of one, an array with four axes is several, and no image gives no row, of the right shape."""
    encoder = dx.Encoder("tiny", tokens="cls,patch", **OPTIONS)
    picture = np.asarray(Image.open(photos / "astronaut.png").convert("RGB").resize((60, 60)))

    alone, three, none = encoder(picture), encoder(np.stack([picture] * 3)), encoder([])

    assert alone["features"].shape == (1, 192)
    assert three["patch_features"].shape == (3, 4, 4, 192)
    np.testing.assert_allclose(three["features"], np.repeat(alone["features"], 3, axis=0), rtol=1e-4, atol=1e-4)
    assert none["patch_features"].shape == (0, 4, 4, 192)
    assert none["patch_features"].dtype == np.float32


def test_grey_and_transparent_arrays_are_pictures_too(photos: Path) -> None:
    """(H, W) is grey, and (H, W, 4) has transparency, of which `alpha` decides."""
    grey = np.asarray(Image.open(photos / "astronaut.png").convert("L"))
    clear = np.dstack([grey, grey, grey, np.zeros_like(grey)])
    encoder = dx.Encoder("tiny", alpha="white", **OPTIONS)

    features = encoder([grey, np.dstack([grey] * 3), clear, np.full((64, 64, 3), 255, np.uint8)])["features"]

    np.testing.assert_allclose(features[0], features[1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(features[2], features[3], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 56, 56), np.uint8), r"image 1 is an array \(3, 56, 56\) of uint8"),
        (np.zeros((56, 56, 3), np.float32), r"image 1 is an array \(56, 56, 3\) of float32"),
        (np.zeros((0, 56, 3), np.uint8), "image 1 is an array"),
        (7, "image 1 is int, expected a Pillow image"),
    ],
)
def test_what_is_no_image_is_named(image: Any, message: str) -> None:
    """Channels first, normalised numbers, and anything else are refused, with the place in the list."""
    encoder = dx.Encoder("tiny", **OPTIONS)

    with pytest.raises(ConfigError, match=message):
        encoder([np.zeros((56, 56, 3), np.uint8), image])


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Damaged bytes and a missing file raise with the place in the list and the reason; the encoder goes on working."""
    encoder = dx.Encoder("tiny", **OPTIONS)
    good = np.zeros((56, 56, 3), np.uint8)

    with pytest.raises(DecodeError, match="image 1 cannot be used: decode: not an image"):
        encoder([good, b"no image"])
    with pytest.raises(DecodeError, match=r"image 0, `.*none\.jpg`, cannot be used: read: the file has gone"):
        encoder(tmp_path / "none.jpg")
    assert encoder(good)["features"].shape == (1, 192)


@pytest.mark.parametrize("preprocess", ["crop", "native"])
def test_encode_gives_a_status_for_each_image(tmp_path: Path, preprocess: str) -> None:
    """Images that cannot be read get NaN, a status and a reason; the others get what a call gives."""
    encoder = dx.Encoder("tiny", tokens="cls,patch", preprocess=preprocess, **OPTIONS)
    good = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)

    encoded = encoder.encode([b"no image", good, tmp_path / "none.jpg", good])

    want = encoder(good)
    assert encoded.status.tolist() == [Status.UNREADABLE, Status.OK, Status.VANISHED, Status.OK]
    assert [bool(error) for error in encoded.errors] == [True, False, True, False]
    assert np.isnan(encoded.arrays["features"][[0, 2]]).all()
    for place in (1, 3):
        np.testing.assert_allclose(encoded.arrays["features"][place], want["features"][0], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(encoded.arrays["patch_features"][place], want["patch_features"][0], rtol=1e-4, atol=1e-4)
    assert repr(encoded) == "Encoded(4 images, 2 failed)"
    assert repr(encoder) == "Encoder(tiny on cpu, features, patch_features)"


def test_options_that_would_do_nothing_are_refused(photos: Path, tmp_path: Path) -> None:
    """What belongs to a run over files, a model beside a file, and a file made with other weights."""
    dx.embed(photos, tmp_path / "x.h5", model="tiny", workers=1, **OPTIONS)

    with pytest.raises(ConfigError, match="no use for `workers`"):
        dx.Encoder("tiny", workers=2)
    with pytest.raises(ConfigError, match="`model` and `like` are both given"):
        dx.Encoder("tiny", like=tmp_path / "x.h5")
    with pytest.raises(StoreError, match="was made with weights random:0"):
        dx.Encoder(like=tmp_path / "x.h5", random_weights=1)


def test_threads_wait_for_each_other(photos: Path) -> None:
    """Calls of different sizes from several threads at once give what they give one after the other."""
    encoder = dx.Encoder("tiny", **OPTIONS)
    files = sorted(photos.iterdir())
    want = encoder(files)["features"]
    got: dict[int, np.ndarray] = {}

    threads = [Thread(target=lambda n=n: got.update({n: encoder(files[:n])["features"]})) for n in (1, 2, 3, 4, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for count in (1, 2, 3, 4, 5):
        np.testing.assert_allclose(got[count], want[:count], rtol=1e-4, atol=1e-4)
