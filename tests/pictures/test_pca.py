"""PCA pictures against scikit-learn and against fields whose foreground is known."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer import Typer
from typer.testing import CliRunner

from dino_extract.cli.pca import pca as pca_command
from dino_extract.errors import ConfigError, StoreError
from dino_extract.images.preprocess import Preprocess
from dino_extract.names import file_stem
from dino_extract.pictures.layout import image_grid
from dino_extract.pictures.pca import PcaColours, fit_pca_colours, pca
from dino_extract.store import Store
from tests.pictures.picture_store import disc, make_store, patch_field


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Five images of 8 x 8 patches, each with a disc as foreground."""
    with make_store(tmp_path) as store:
        yield store


@pytest.mark.parametrize("sign", [1, -1])
def test_the_disc_is_the_foreground_whatever_the_sign_of_the_first_component(sign: int) -> None:
    """The patches of a disc in the middle are found, also in tokens of opposite sign."""
    fields = [sign * patch_field(16, 16, seed) for seed in range(4)]

    colours = fit_pca_colours(fields)

    for field in fields:
        np.testing.assert_array_equal(colours.foreground(field), disc(16, 16))


def test_images_of_different_scenes_do_not_hide_the_foreground() -> None:
    """Far larger differences between images than inside them leave the disc the foreground."""
    fields = [patch_field(16, 16, seed) for seed in range(4)]
    for seed, field in enumerate(fields):
        field[..., 10 + seed] += 40

    colours = fit_pca_colours(fields)

    for field in fields:
        np.testing.assert_array_equal(colours.foreground(field), disc(16, 16))


def test_flip_makes_the_background_the_foreground() -> None:
    """With `flip` exactly the patches outside the disc are kept."""
    field = patch_field(16, 16, 0)

    colours = fit_pca_colours([field], flip=True)

    np.testing.assert_array_equal(colours.foreground(field), ~disc(16, 16))


def test_components_equal_those_of_scikit_learn() -> None:
    """Both PCAs are those of scikit-learn: on all patches less the mean of their image, and on the patches of the disc."""
    decomposition = pytest.importorskip("sklearn.decomposition")
    fields = [patch_field(12, 12, 0), patch_field(9, 15, 1)]
    flat = np.concatenate([field.reshape(-1, field.shape[-1]) for field in fields])
    centred = np.concatenate([field.reshape(-1, field.shape[-1]) - field.mean(axis=(0, 1)) for field in fields])
    inside = np.concatenate([disc(12, 12).ravel(), disc(9, 15).ravel()])

    colours = fit_pca_colours(fields)

    first = decomposition.PCA(1).fit(centred)
    second = decomposition.PCA(3).fit(flat[inside])
    np.testing.assert_allclose(np.abs(colours.foreground_axis @ first.components_[0]), 1, atol=1e-6)
    np.testing.assert_allclose(np.abs(np.sum(colours.colour_axes * second.components_, axis=1)), 1, atol=1e-5)
    np.testing.assert_allclose(colours.explained, [*first.explained_variance_ratio_, *second.explained_variance_ratio_], rtol=1e-4)


def test_background_is_black_and_the_foreground_uses_the_whole_range() -> None:
    """Patches outside the disc are black; inside every channel goes from 0 to 255."""
    field = patch_field(24, 24, 0)

    rgb = fit_pca_colours([field]).rgb(field)

    assert (rgb[~disc(24, 24)] == 0).all()
    assert (rgb[disc(24, 24)].min(axis=0) == 0).all()
    assert (rgb[disc(24, 24)].max(axis=0) == 255).all()


def test_saved_components_give_new_images_the_same_colours(tmp_path: Path) -> None:
    """Directions written and read again colour an image they were not fitted on exactly as before."""
    colours = fit_pca_colours([patch_field(16, 16, 0)], made_with={"model": "vits14"})
    new = patch_field(10, 20, 9)

    colours.save(tmp_path / "components.safetensors")
    again = PcaColours.load(tmp_path / "components.safetensors")

    np.testing.assert_array_equal(again.rgb(new), colours.rgb(new))
    assert again.made_with == {"model": "vits14"}


def test_components_may_be_given_by_their_file(store: Store, tmp_path: Path) -> None:
    """The file of an earlier run gives the same colours as that run."""
    written = pca(store).save(tmp_path / "out")

    np.testing.assert_array_equal(pca(store, components=Path(written[-1])).patches, pca(store).patches)


def test_none_and_zero_take_all_images(store: Store) -> None:
    """None and 0 take all images, and a number below zero is refused."""
    assert len(pca(store, images=0).paths) == len(pca(store, images=None).paths) == 5
    with pytest.raises(ConfigError, match="`images` must be a whole number of at least 1, got `-1`"):
        pca(store, images=-1)


def test_the_background_ends_in_standard_deviations_above_the_mean() -> None:
    """Background 0 keeps the patches above the mean of the first component, as the paper does."""
    field = patch_field(16, 16, 0)
    flat = field.reshape(-1, field.shape[-1])

    colours = fit_pca_colours([field], background=0.0)

    scores = (flat - flat.mean(axis=0)) @ colours.foreground_axis
    np.testing.assert_array_equal(colours.foreground(field).ravel(), scores > 0)


def test_keep_background_colours_every_patch() -> None:
    """With `keep_background` all patches are foreground."""
    field = patch_field(8, 8, 0)

    colours = fit_pca_colours([field], keep_background=True)

    assert colours.foreground(field).all()


def test_failed_images_are_left_out(tmp_path: Path) -> None:
    """An image that could not be embedded has no picture, and the others keep their names."""
    with make_store(tmp_path, broken=["cats/b.jpg"]) as store:
        result = pca(store)

        assert result.paths == ["cats/a.jpg", "dogs/c.jpg", "dogs/d.jpg", "dogs/e.jpg"]


def test_images_of_different_grids_are_coloured_together(tmp_path: Path) -> None:
    """A file made at native aspect gives pictures of the shapes of its grids, with the disc of each in the foreground."""
    grids = [(8, 8), (8, 16), (12, 8)]

    with make_store(tmp_path, ["a.jpg", "b.jpg", "c.jpg"], grids=grids) as store:
        result = pca(store)

    assert [picture.shape[:2] for picture in result.patches] == grids
    np.testing.assert_allclose(result.foreground, [disc(*grid).mean() for grid in grids])


def test_patterns_and_a_number_choose_images_evenly(store: Store) -> None:
    """`dogs/*` and 2 images take the first and the last dog."""
    result = pca(store, "dogs/*", images=2)

    assert result.paths == ["dogs/c.jpg", "dogs/e.jpg"]


def test_padding_is_not_coloured(tmp_path: Path) -> None:
    """Images padded above and below have the colours that their own patches alone would have, and black beside them."""
    fields = [patch_field(8, 8, seed) for seed in range(3)]
    padded = [field.copy() for field in fields]
    for field in padded:
        field[:2], field[6:] = 50.0, -50.0
    options = Preprocess(policy="pad", height=112, width=112)
    attrs = {"preprocessing": json.dumps(options.as_record())}

    with make_store(tmp_path, ("a.jpg", "b.jpg", "c.jpg"), patches=padded, size=(64, 128), attrs=attrs) as store:
        found = pca(store)

    alone = [field[2:6] for field in fields]
    want = fit_pca_colours(alone)
    for picture, patches in zip(found.patches, alone, strict=True):
        np.testing.assert_array_equal(picture[2:6], want.rgb(patches))
        assert picture[[0, 1, 6, 7]].max() == 0


def test_an_exact_path_is_not_a_pattern(tmp_path: Path) -> None:
    """An image whose name has brackets is found by its name."""
    with make_store(tmp_path, ("a/a1.jpg", "a/a[1].jpg", "b/c.jpg")) as store:
        assert pca(store, Path("a/a[1].jpg")).paths == ["a/a[1].jpg"]
        assert pca(store, "a/a[1-2].jpg").paths == ["a/a1.jpg"]


def test_a_picture_has_the_photograph_beside_the_colours(store: Store) -> None:
    """The left half is what the model saw, the right half the patches at 14 pixels each."""
    result = pca(store)

    picture = np.asarray(result.picture(0))

    assert picture.shape == (112, 112 + 6 + 112, 3)
    assert picture[56, 56].max() > 100  # the bright disc of the photograph
    np.testing.assert_array_equal(picture[7::14, 118 + 7 :: 14], result.patches[0])


def test_colours_alone_are_drawn_if_the_photograph_was_deleted(tmp_path: Path) -> None:
    """Without the photograph the picture is the patches."""
    with make_store(tmp_path, with_photos=False) as store:
        picture = pca(store).picture(0)

    assert picture.size == (112, 112)


def test_everything_is_saved_in_one_folder(store: Store, tmp_path: Path) -> None:
    """Grid, one PNG for each image and the components are written, and nothing outside the folder."""
    written = pca(store, images=2).save(tmp_path / "out")

    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["000_cats__a.png", "001_dogs__e.png", "components.safetensors", "grid.png"]
    assert sorted(Path(path).name for path in written) == names
    with Image.open(tmp_path / "out" / "grid.png") as grid:
        assert grid.width > 400


@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "/abs/x.png", "..", "a\nb", "-rf", "\udcff.jpg", "x" * 500, ".hidden", "=1+2", "a" + "-" * 80]
)
def test_no_path_becomes_a_name_that_leaves_the_folder(path: str) -> None:
    """File names made from paths have no folder, no control character, and a length every file system takes."""
    name = file_stem(path)

    assert name
    assert "/" not in name
    assert not name.startswith((".", "=", "+", "-", "@"))
    assert name.isprintable()
    assert len(name.encode()) <= 255


def test_a_sheet_holds_every_picture_and_its_caption() -> None:
    """Seven squares are in rows of three, with room for captions."""
    squares = [Image.new("RGB", (30, 30), "red")] * 7

    sheet = image_grid(squares, [f"image {number}" for number in range(7)])

    assert np.asarray(sheet.convert("RGB")).shape == (3 * (30 + 18 + 6) - 6 + 12, 3 * 36 - 6 + 12, 3)
    assert (np.asarray(sheet) == (255, 0, 0)).all(axis=-1).sum() == 7 * 900


def test_an_unfinished_file_is_refused(tmp_path: Path) -> None:
    """A run in progress is named as such."""
    with make_store(tmp_path, is_finished=False) as store, pytest.raises(StoreError, match=r"is not finished: 4 of 5 rows"):
        pca(store)


def test_a_pattern_without_an_image_is_refused(store: Store) -> None:
    """An unknown path is an error that shows what paths look like."""
    with pytest.raises(ConfigError, match="is called `birds/\\*`") as caught:
        pca(store, ["birds/*"])

    assert caught.value.hint == "paths look like `cats/a.jpg`, and `*` stands for anything"


def test_values_that_are_not_finite_are_refused() -> None:
    """A NaN among the tokens is an error, not a black picture."""
    fields = [patch_field(8, 8, seed) for seed in range(5)]
    fields[2][3, 3, 3] = np.nan

    with pytest.raises(StoreError, match="the patch tokens of image 2 hold values that are not finite"):
        fit_pca_colours(fields)


def test_tokens_that_are_all_the_same_are_refused() -> None:
    """Blank images have no components."""
    with pytest.raises(StoreError, match="all patch tokens are the same"):
        fit_pca_colours([np.ones((4, 4, 8), np.float32)])


def test_a_background_above_everything_is_refused() -> None:
    """An error says how many patches are foreground."""
    with pytest.raises(StoreError, match="only 0 patches are foreground"):
        fit_pca_colours([patch_field(8, 8, 0)], background=50.0)


def test_components_of_another_model_are_refused(store: Store) -> None:
    """Colours fitted on one model are not used for another."""
    colours = fit_pca_colours([patch_field(8, 8, 0)], made_with={"model": "vitb14"})

    with pytest.raises(ConfigError, match="model `vitb14` instead of `vits14`"):
        pca(store, components=colours)


@pytest.mark.parametrize("option", [{"background": 0.5}, {"flip": True}, {"keep_background": True}])
def test_options_that_components_decide_are_refused(store: Store, option: dict[str, Any]) -> None:
    """An option that would change nothing because components are given is refused."""
    colours = pca(store).colours

    with pytest.raises(ConfigError, match="`components` decide what is foreground"):
        pca(store, components=colours, **option)


def test_a_file_that_holds_no_components_is_refused(tmp_path: Path) -> None:
    """Any other file in the place of the components is an error."""
    (tmp_path / "x.safetensors").write_bytes(b"nothing")

    with pytest.raises(ConfigError, match="holds no PCA components"):
        PcaColours.load(tmp_path / "x.safetensors")


def test_the_command_prints_the_grid_and_reuses_components(store: Store, tmp_path: Path) -> None:
    """A second run with the components of the first gives the same picture, and prints where it is."""
    app = Typer()
    app.command()(pca_command)
    first = CliRunner().invoke(app, [store.path, "-o", str(tmp_path / "one"), "--json"])
    said = json.loads(first.stdout)
    components = said["components"]

    second = CliRunner().invoke(app, [store.path, "-o", str(tmp_path / "two"), "--components", components])

    assert said["paths"] == store.paths
    assert len(said["pictures"]) == len(said["foreground"]) == len(store.paths)
    assert second.stdout == f"{tmp_path / 'two' / 'grid.png'}\n"
    assert (tmp_path / "two" / "grid.png").read_bytes() == (tmp_path / "one" / "grid.png").read_bytes()
