"""Attention maps against the attention that the backbone itself computes, and against an equation written naively."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer import Typer
from typer.testing import CliRunner

from dino_extract.backbone import Backbone, BackboneConfig, DinoVisionTransformer
from dino_extract.cli.attention import attention as attention_command
from dino_extract.errors import ConfigError, ExitCode, SourceError
from dino_extract.pictures.attention import AttentionMaps, attention_maps, cls_attention, heat
from dino_extract.pictures.model_input import InputImage, input_image
from tests.pictures.picture_store import write_photo

CONFIG = BackboneConfig(embed_dim=48, depth=3, num_heads=4, image_size=56, layer_scale_init=1.0)


def backbone(*, has_registers: bool = False) -> DinoVisionTransformer:
    """A small network with random weights that attend unevenly."""
    torch.manual_seed(0)
    model = DinoVisionTransformer(CONFIG.with_registers() if has_registers else CONFIG).eval()
    for block in model.blocks:
        torch.nn.init.normal_(block.attn.qkv.weight, std=0.5)
    return model


def photo(folder: Path, size: tuple[int, int] = (90, 60)) -> Path:
    """A picture of a given width and height."""
    path = folder / "a.jpg"
    write_photo(path, 128, 0)
    with Image.open(path) as image:
        image.resize(size).save(path)
    return path


@pytest.mark.parametrize("has_registers", [False, True])
@pytest.mark.parametrize("layer", [0, 2])
def test_attention_times_values_equals_the_fast_kernel(has_registers: bool, layer: int) -> None:
    """The weights found here, applied to the values, equal the CLS row of torch's scaled_dot_product_attention."""
    model = backbone(has_registers=has_registers)
    images = torch.randn(2, 3, 56, 70)
    inputs: list[torch.Tensor] = []
    model.blocks[layer].attn.qkv.register_forward_hook(lambda module, args, output: inputs.append(output))
    with torch.inference_mode():
        model(images)
        found = cls_attention(model, images, layer)

    query, key, value = model.blocks[layer].attn.split_heads(inputs[0].view(2, -1, 3 * 48))
    want = torch.nn.functional.scaled_dot_product_attention(query, key, value)[:, :, 0]
    torch.testing.assert_close(torch.einsum("bas,basd->bad", found, value), want, rtol=1e-4, atol=1e-5)


def test_attention_equals_the_equation_written_naively() -> None:
    """exp(q k / sqrt(d)) divided by its sum, head by head and token by token."""
    model = backbone()
    images = torch.randn(1, 3, 28, 28)

    with torch.inference_mode():
        found = cls_attention(model, images, 0)[0]
        normed = model.blocks[0].norm1(model.embed(images))[0]
        fused = model.blocks[0].attn.qkv(normed).tolist()

    for head in range(4):
        columns = range(12 * head, 12 * head + 12)
        scores = [math.exp(sum(fused[0][c] * token[48 + c] for c in columns) / math.sqrt(12)) for token in fused]
        np.testing.assert_allclose(found[head], [score / sum(scores) for score in scores], rtol=1e-3)


@pytest.mark.parametrize(("has_registers", "first_patch"), [(False, 1), (True, 5)])
def test_maps_show_patches_only(tmp_path: Path, has_registers: bool, first_patch: int) -> None:
    """CLS and register tokens are left out of the maps, and together with their share each head sums to one."""
    model = backbone(has_registers=has_registers)
    image = input_image(photo(tmp_path), model, size=56)

    maps = attention_maps(model, image)

    with torch.inference_mode():
        want = cls_attention(model, image.pixels(model), 2)[0, :, first_patch:]
    assert maps.heads.shape == (4, 4, 6)
    np.testing.assert_array_equal(maps.heads.reshape(4, -1), want)
    np.testing.assert_allclose(maps.heads.sum(axis=(1, 2)) + maps.elsewhere, 1, rtol=1e-5)


def test_an_image_is_seen_whole_and_normalised(tmp_path: Path) -> None:
    """A 90 x 60 picture becomes 84 x 56 pixels, whose values are those of the picture less the mean over the deviation."""
    model = backbone()

    image = input_image(photo(tmp_path), model, size=56)

    pixels = image.pixels(model)
    assert image.picture.size == (84, 56)
    want = (np.asarray(image.picture)[10, 20] / 255 - model.mean) / model.std
    np.testing.assert_allclose(pixels[0, :, 10, 20], want, rtol=1e-5)


def test_heat_goes_from_dark_to_pale() -> None:
    """Nothing is nearly black, the most is pale yellow."""
    picture = np.asarray(heat(np.array([[0.0, 0.5], [0.9, 1.0]], np.float32)))

    assert picture[0, 0].max() < 10
    assert picture[1, 1].min() > 180
    assert picture.sum(axis=-1).ravel().tolist() == sorted(picture.sum(axis=-1).ravel().tolist())


def test_a_picture_has_the_image_the_mean_and_every_head(tmp_path: Path) -> None:
    """Six tiles for four heads."""
    image = InputImage("a.jpg", Image.new("RGB", (84, 56), (0, 255, 0)))
    maps = AttentionMaps(image, np.full((4, 4, 6), 1 / 24, np.float32), np.zeros(4, np.float32), 2)

    sheet = np.asarray(maps.picture())

    assert (sheet == (0, 255, 0)).all(axis=-1).sum() == 84 * 56
    assert (sheet == (252, 253, 191)).all(axis=-1).sum() == 5 * 84 * 56


def test_a_block_the_model_does_not_have_is_refused(tmp_path: Path) -> None:
    """The error names the blocks there are."""
    model = backbone()

    with pytest.raises(ConfigError, match=r"`layer` must be from 0 to 2 for this model, got 3"):
        attention_maps(model, input_image(photo(tmp_path), model, size=56), layer=3)


def test_a_model_of_another_library_is_refused(tmp_path: Path) -> None:
    """Attention needs the projections of a DINOv2 model, which other networks do not give."""

    class Foreign(Backbone):
        def forward(self, images):
            raise AssertionError("never called")

        intermediate_layers = forward

    with pytest.raises(ConfigError, match="need a DINOv2 model"):
        attention_maps(Foreign(), InputImage("a.jpg", Image.new("RGB", (28, 28))))


def test_a_file_that_is_not_an_image_is_refused(tmp_path: Path) -> None:
    """The error names the file and the reason."""
    (tmp_path / "a.jpg").write_text("not an image")

    with pytest.raises(SourceError, match=r"a\.jpg` cannot be used: decode: not an image in a known format"):
        input_image(tmp_path / "a.jpg", backbone(), size=56)


def test_the_command_writes_one_picture_for_each_image(tmp_path: Path) -> None:
    """Standard output lists the pictures, JSON has the share of each head that goes elsewhere."""
    path = photo(tmp_path)
    app = Typer()
    app.command()(attention_command)
    arguments = [str(path), "-o", str(tmp_path / "out"), "--model", "vits14-reg", "--random-weights", "0", "--size", "56"]

    plain = CliRunner().invoke(app, arguments)
    as_json = CliRunner().invoke(app, [*arguments, "--json", "--overwrite"])

    assert plain.stdout == f"{tmp_path / 'out' / '000_a.png'}\n"
    assert (tmp_path / "out" / "000_a.png").exists()
    assert len(json.loads(as_json.stdout)[0]["elsewhere"]) == 6


def test_an_image_that_cannot_be_read_costs_its_own_picture(tmp_path: Path) -> None:
    """The others are drawn under their own numbers, it is named, and the exit code says that something is missing."""
    path = photo(tmp_path)
    (tmp_path / "bad.jpg").write_text("not an image")
    app = Typer()
    app.command()(attention_command)

    ran = CliRunner().invoke(
        app, [str(tmp_path / "bad.jpg"), str(path), "-o", str(tmp_path / "out"), "--model", "tiny", "--size", "56", "--offline"]
    )

    assert ran.exit_code == ExitCode.FAILURES
    assert ran.stdout == f"{tmp_path / 'out' / '001_a.png'}\n"
    assert f"left out: `{tmp_path / 'bad.jpg'}` cannot be used: decode" in ran.stderr
