"""`match`: the same parts in two images."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dino_extract.cli.options import AsJson, print_json, say
from dino_extract.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    Seen = tuple["Image.Image", "NDArray[Any]"]


def match(
    image_a: Annotated[str, typer.Argument(metavar="A", help="An image file, or with --file a path in it.")],
    image_b: Annotated[str, typer.Argument(metavar="B", help="The other one.")],
    file: Annotated[str | None, typer.Option(metavar="FILE.h5", help="Take the stored patch tokens of two of its images.")] = None,
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE.png", help="Where the picture goes.")] = "match.png",
    count: Annotated[int, typer.Option(min=1, help="Draw at most this many matches.")] = 40,
    spacing: Annotated[int, typer.Option(min=1, help="Patches between two matches that are drawn.")] = 2,
    min_similarity: Annotated[float, typer.Option(help="Leave out pairs with a smaller cosine.")] = 0.0,
    keep_background: Annotated[bool, typer.Option("--keep-background", help="Match every patch.")] = False,
    model: Annotated[str | None, typer.Option(help="A name from `dino-extract weights list`, or timm/NAME.")] = None,
    weights: Annotated[str | None, typer.Option(metavar="PATH", help="Checkpoint file in any layout, or a fine-tuning run folder.")] = None,
    random_weights: Annotated[int | None, typer.Option(metavar="SEED", help="Untrained weights: the matches mean little.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never download.")] = False,
    size: Annotated[int, typer.Option(help="Shorter side in pixels; a multiple of the patch size.")] = 448,
    as_json: AsJson = False,
) -> None:
    """Draw lines between patches of two images that are each other's most similar patch."""
    from dino_extract.analysis.writing import require_picture_place, writing
    from dino_extract.pictures.match import match_patches  # loads torch, which `--help` must not wait for

    require_picture_place(output, "picture")
    if file is not None:
        if model is not None or weights is not None or random_weights is not None:
            raise ConfigError("`--file` has patch tokens already, so no model is taken", hint="leave `--file` out to embed the two images")
        (picture_a, patches_a), (picture_b, patches_b) = _stored(file, image_a, image_b)
    else:
        options = {"weights": weights, "random_seed": random_weights, "offline": offline}
        (picture_a, patches_a), (picture_b, patches_b) = _embedded(image_a, image_b, model, size, options)
    found = match_patches(patches_a, patches_b, foreground_only=not keep_background, min_similarity=min_similarity)
    drawn = found.first(count, spacing=spacing)
    picture = drawn.picture(picture_a, picture_b)
    with writing(output, "picture", also=ValueError):
        picture.save(output)
    say(f"{len(found):,} matches, {len(drawn):,} drawn")
    if as_json:
        print_json({"picture": output, "a": found.places_a, "b": found.places_b, "similarity": found.similarity})
    else:
        print(output)


def _stored(file: str, *paths: str) -> list[Seen]:
    from PIL import Image

    from dino_extract.analysis.search import rows_of
    from dino_extract.images.preprocess import Preprocess
    from dino_extract.pictures.stored import patches_of_picture, seen_picture
    from dino_extract.store import open_store

    pairs: list[Seen] = []
    with open_store(file) as store:
        store.require_complete()
        preprocess, sizes = Preprocess.from_record(json.loads(str(store.attrs["preprocessing"]))), store.image_size.tolist()
        for path, row in zip(paths, rows_of(store, paths).tolist(), strict=True):
            grid, side = store.patch_features[row], preprocess.patch
            picture = seen_picture(store, path) or Image.new("RGB", (grid.shape[1] * side, grid.shape[0] * side), "grey")
            part = patches_of_picture(preprocess, sizes[row])
            top, left, patches = part[0].start * side, part[1].start * side, grid[part]
            pairs.append((picture.crop((left, top, left + patches.shape[1] * side, top + patches.shape[0] * side)), patches))
    return pairs


def _embedded(image_a: str, image_b: str, model: str | None, size: int, options: dict[str, Any]) -> list[Seen]:
    import torch

    from dino_extract.pictures.sight import require_there, see
    from dino_extract.weights.loading import load

    require_there(image_a, image_b)
    backbone = load(model, **options).module
    pairs: list[Seen] = []
    for path in (image_a, image_b):
        seen = see(path, backbone, size=size)
        with torch.inference_mode():
            patches = backbone(seen.pixels(backbone)).patches[0]
        grid = (seen.picture.height // backbone.patch_size, seen.picture.width // backbone.patch_size)
        pairs.append((seen.picture, patches.unflatten(0, grid).numpy()))
    return pairs
