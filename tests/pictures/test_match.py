"""Patch matches against shifts that are known and against a naive search."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer import Typer
from typer.testing import CliRunner

from dino_extract.cli.match import match as match_command
from dino_extract.errors import ConfigError, StoreError
from dino_extract.images.preprocess import Preprocess
from dino_extract.pictures.match import Matches, match_patches
from tests.cli.analysis_app import run_command
from tests.pictures.picture_store import disc, make_store, patch_field, write_photo


def random_field(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Tokens that are all different."""
    return np.random.default_rng(seed).normal(size=(height, width, 16)).astype(np.float32)


def test_a_shifted_image_is_matched_patch_by_patch() -> None:
    """Moved by two rows and three columns, every patch that is still there finds itself."""
    field = random_field(10, 12)

    found = match_patches(field[:8, :9], field[2:, 3:], foreground_only=False)

    pairs = {
        (tuple(a), tuple(b))
        for a, b, s in zip(found.places_a.tolist(), found.places_b.tolist(), found.similarity, strict=True)
        if s > 0.999
    }
    assert pairs == {((row, column), (row - 2, column - 3)) for row in range(2, 8) for column in range(3, 9)}


def test_matches_are_mutual_nearest_neighbours() -> None:
    """The pairs are those that a loop over all patches finds, best first."""
    field_a, field_b = random_field(4, 5), random_field(6, 3, seed=1)
    flat_a, flat_b = field_a.reshape(-1, 16), field_b.reshape(-1, 16)
    cosine = (flat_a / np.linalg.norm(flat_a, axis=1, keepdims=True)) @ (flat_b / np.linalg.norm(flat_b, axis=1, keepdims=True)).T

    found = match_patches(field_a, field_b, foreground_only=False)

    want = {(i, j) for i in range(20) for j in range(18) if cosine[i, j] == cosine[i].max() and cosine[i, j] == cosine[:, j].max()}
    rows_a, rows_b = found.places_a @ [5, 1], found.places_b @ [3, 1]
    assert set(zip(rows_a.tolist(), rows_b.tolist(), strict=True)) == want
    np.testing.assert_allclose(found.similarity, cosine[rows_a, rows_b], rtol=1e-5)
    assert (np.diff(found.similarity) <= 0).all()


def test_only_foreground_is_matched() -> None:
    """Every match is on the disc in both images, although the background would match too."""
    found = match_patches(patch_field(16, 16, 0), patch_field(16, 16, 1))

    assert len(found) > 5
    assert disc(16, 16)[tuple(found.places_a.T)].all()
    assert disc(16, 16)[tuple(found.places_b.T)].all()


def test_pairs_below_the_least_similarity_are_left_out() -> None:
    """The threshold is a cosine."""
    found = match_patches(random_field(6, 6), random_field(6, 6, seed=1), foreground_only=False, min_similarity=0.6)

    assert len(found) > 0
    assert found.similarity.min() >= 0.6


def test_drawn_matches_keep_their_distance_in_both_images() -> None:
    """Of neighbouring matches only the best is kept."""
    field = random_field(9, 9)

    drawn = match_patches(field, field, foreground_only=False).first(100, spacing=3)

    for places in (drawn.places_a, drawn.places_b):
        apart = np.abs(places[:, None] - places[None]).max(axis=-1) + 99 * np.eye(len(places), dtype=int)
        assert apart.min() >= 3
    assert len(drawn) >= 4


def test_lines_join_the_middles_of_the_patches() -> None:
    """A match of the top left with the bottom right patch is drawn from and to their middles."""
    black = Image.new("RGB", (28, 28))
    matches = Matches(np.array([[0, 0]]), np.array([[1, 1]]), np.ones(1, np.float32), (2, 2), (2, 2), (black, black))

    sheet = np.asarray(matches.picture())

    assert sheet.shape == (28, 28 + 24 + 28, 3)
    assert sheet[7, 7].max() == 255
    assert sheet[21, 52 + 21].max() == 255
    assert sheet[21, 7].max() == 0


def test_tokens_may_be_tensors_and_must_be_grids() -> None:
    """Tokens fresh from a backbone match as those of a file do; without their grid they are refused."""
    field = random_field(4, 4)

    found = match_patches(torch.from_numpy(field).requires_grad_(), field[:, :, ::1], foreground_only=False)

    assert len(found) == 16
    with pytest.raises(ConfigError, match=r"patch tokens must have shape \(h, w, D\), got \(16, 16\)"):
        match_patches(field.reshape(16, 16), field)


def test_images_of_one_patch_match_only_with_their_background() -> None:
    """Too few patches for components is one sentence, and the way out that it names works."""
    one, other = random_field(1, 1), random_field(1, 1, seed=1)

    with pytest.raises(StoreError, match="too few for three components") as caught:
        match_patches(one, other)
    assert "`keep_background`" in str(caught.value.hint)
    assert len(match_patches(one, other, foreground_only=False, min_similarity=-1)) == 1


def test_tokens_of_different_models_are_refused() -> None:
    """Widths must agree."""
    with pytest.raises(ConfigError, match="tokens of width 16 and 8"):
        match_patches(random_field(4, 4), random_field(4, 4)[..., :8])


def test_values_that_are_not_finite_are_refused() -> None:
    """A NaN is an error with and without the foreground."""
    field = random_field(4, 4)
    field[0, 0, 0] = np.nan

    for foreground_only in (True, False):
        with pytest.raises(StoreError, match="hold values that are not finite"):
            match_patches(field, random_field(4, 4, seed=1), foreground_only=foreground_only)


def test_the_command_matches_two_stored_images(tmp_path: Path) -> None:
    """With `--file` no model is loaded, and the picture has the photographs."""
    with make_store(tmp_path) as store:
        path = store.path
    app = Typer()
    app.command()(match_command)

    result = CliRunner().invoke(app, ["cats/a.jpg", "dogs/c.jpg", "--file", path, "-o", str(tmp_path / "m.png")])

    assert result.stdout == f"{tmp_path / 'm.png'}\n"
    with Image.open(tmp_path / "m.png") as sheet:
        assert sheet.size == (112 + 24 + 112, 112)


def test_padding_matches_nothing(tmp_path: Path) -> None:
    """Patches of the padding of `--preprocess pad` are not matched."""
    options = Preprocess(policy="pad", height=112, width=112)
    attrs = {"preprocessing": json.dumps(options.as_record())}
    with make_store(tmp_path, ("a.jpg", "b.jpg"), patches=[random_field(8, 8)] * 2, size=(128, 64), attrs=attrs) as store:
        path = store.path

    out, _ = run_command(match_command, "a.jpg", "b.jpg", "--file", path, "-o", str(tmp_path / "m.png"), "--keep-background", "--json")

    assert len(json.loads(out)["a"]) == 8 * 4
    with Image.open(tmp_path / "m.png") as sheet:
        assert sheet.size == (56 + 24 + 56, 112)


def test_the_exact_path_of_a_stored_image_is_not_a_pattern(tmp_path: Path) -> None:
    """An image whose name has brackets is found by its name."""
    fields = [random_field(8, 8, seed) for seed in (0, 1, 1)]
    with make_store(tmp_path, ("a/a1.jpg", "a/a[1].jpg", "b/c.jpg"), patches=fields) as store:
        path = store.path

    out, _ = run_command(
        match_command, "a/a[1].jpg", "b/c.jpg", "--file", path, "-o", str(tmp_path / "m.png"), "--keep-background", "--json"
    )

    found = json.loads(out)
    assert found["a"] == found["b"]
    assert len(found["a"]) == 64


def test_the_command_matches_two_files(tmp_path: Path) -> None:
    """An image matches itself patch by patch, whatever the weights."""
    write_photo(tmp_path / "a.jpg", 84, 0)
    app = Typer()
    app.command()(match_command)
    arguments = [str(tmp_path / "a.jpg")] * 2 + [
        "-o",
        str(tmp_path / "m.png"),
        "--random-weights",
        "0",
        "--size",
        "84",
        "--keep-background",
    ]

    result = CliRunner().invoke(app, [*arguments, "--json"])

    found = json.loads(result.stdout)
    assert found["a"] == found["b"]
    assert len(found["a"]) == 36
    assert min(found["similarity"]) > 0.999
