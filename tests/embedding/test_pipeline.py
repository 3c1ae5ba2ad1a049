"""The pipeline: every image gets its own row, once, whatever happens on the way."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from dino_extract.backbone import BackboneConfig, DinoVisionTransformer
from dino_extract.config import EmbedConfig
from dino_extract.embedding.job import prepare
from dino_extract.embedding.pipeline import embed, embed_like, run
from dino_extract.embedding.stages import EmbedResult
from dino_extract.engine import Engine
from dino_extract.errors import ConfigError, DinoExtractError, StoreError
from dino_extract.images.preprocess import Jpeg
from dino_extract.status import Status
from dino_extract.store import open_store
from dino_extract.weights.checkpoint import save_checkpoint
from dino_extract.weights.registry import checkpoints
from tests.sample_images import MeanColour, mean_colours, save_pictures

CONFIG = EmbedConfig(model="tiny", random_weights=0, size="28", dtype="float32", store_dtype="float32", batch=4, workers=1)


def embed_colours(source: Path, output: Path, config: EmbedConfig = CONFIG, **arguments: Any) -> tuple[EmbedResult, MeanColour]:
    """Embed with the model that gives back mean colours; also gives that model, which counts its calls."""
    job = prepare([str(source)], output, config)
    model = MeanColour()
    settings = replace(job.settings, preprocess=replace(job.settings.preprocess, mean=model.mean, std=model.std))
    layout = replace(job.layout, datasets=tuple(replace(dataset, shape=(*dataset.shape[:-1], 3)) for dataset in job.layout.datasets))
    recipe = replace(job.recipe, settings=settings, model=replace(job.recipe.model, module=model))
    job = replace(job, recipe=recipe, layout=layout)
    return run(job, **arguments), model


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of ten pictures."""
    save_pictures(tmp_path / "photos", range(10))
    return tmp_path / "photos"


def test_each_image_gets_its_own_row_in_the_order_of_the_paths(photos: Path, tmp_path: Path) -> None:
    """Ten pictures in batches of four: each row is the mean colour of the picture its path names, paths sorted."""
    embed_colours(photos, tmp_path / "x.h5")

    with h5py.File(tmp_path / "x.h5") as file:
        paths = list(file["paths"].asstr()[:])
        features = file["features"][:]
    assert paths == sorted(paths)
    assert len(paths) == 10
    np.testing.assert_allclose(features, mean_colours(paths), atol=0.01)


def test_a_broken_image_costs_its_own_row_and_shifts_no_other(photos: Path, tmp_path: Path) -> None:
    """Rows beside a damaged file hold exactly what they hold without it; its own is NaN with a status and a text."""
    (photos / "even" / "0003_broken.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")

    result, _ = embed_colours(photos, tmp_path / "x.h5")

    with h5py.File(tmp_path / "x.h5") as file:
        paths = list(file["paths"].asstr()[:])
        broken = paths.index("even/0003_broken.png")
        assert np.isnan(file["features"][broken]).all()
        assert file["status"][broken] == Status.UNREADABLE
        assert file["error"][broken].startswith(b"decode:")
        good = [row for row in range(len(paths)) if row != broken]
        np.testing.assert_allclose(file["features"][:][good], mean_colours([paths[row] for row in good]), atol=0.01)
    assert result.failed == 1


def test_errors_are_those_of_the_documented_format(photos: Path, tmp_path: Path) -> None:
    """The texts that docs/file-format.md shows are what a web page and a damaged PNG get."""
    (photos / "page.png").write_text("<!DOCTYPE html><html></html>")
    damaged = bytearray((photos / "even" / "0000.png").read_bytes())
    damaged[damaged.index(b"IDAT") + 12] ^= 0xFF
    (photos / "wrong_bit.png").write_bytes(damaged)
    document = (Path(__file__).parents[2] / "docs" / "file-format.md").read_text(encoding="utf-8")

    embed_colours(photos, tmp_path / "x.h5")

    with open_store(tmp_path / "x.h5") as store:
        page, wrong_bit = (failure.error for failure in store.failures)
    assert f"'{page}'" in document
    assert f"`{wrong_bit}`" in document


def test_a_second_run_computes_nothing_and_touches_nothing(photos: Path, tmp_path: Path) -> None:
    """Run again over the same folder, the model is not called and the file keeps its inode and time."""
    embed_colours(photos, tmp_path / "x.h5")
    before = (tmp_path / "x.h5").stat()

    result, model = embed_colours(photos, tmp_path / "x.h5")

    after = (tmp_path / "x.h5").stat()
    assert (result.embedded, result.reused, model.calls) == (0, 10, 0)
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert "nothing was left to do" in result.text()


@pytest.mark.parametrize(
    ("waited", "says"),
    [
        ((16, 12, 8, 4), "70% of the time went to images, above all to reading them: a faster disk"),
        ((8, 12, 16, 4), "50% of the time went to images, above all to decoding them: more CPU cores"),
        ((4, 8, 16, 12), "40% of the time went to the model: a GPU"),
        ((4, 8, 8, 20), "50% of the time went to writing: a faster disk, `--store-dtype float16`"),
    ],
)
def test_the_summary_says_what_bounded_the_run(waited: tuple[int, ...], says: str) -> None:
    """Reading and decoding together are weighed against the model and the disk; of the two, the longer gives the advice."""
    waited_s = dict(zip(("read", "decode", "model", "write"), map(float, waited), strict=True))
    result = EmbedResult("x.h5", total=5, embedded=4, reused=1, failed=0, gone=0, dropped=0, seconds=40.0, waited_s=waited_s)

    assert result.text().splitlines()[1].startswith(f"40.0 s, 0.1 images/s; {says}")


def test_a_short_run_gets_no_advice() -> None:
    """Below half a minute the summary has the rate alone."""
    waited_s = {"read": 0.0, "decode": 1.0, "model": 0.5, "write": 0.1}
    result = EmbedResult("x.h5", total=1, embedded=1, reused=0, failed=0, gone=0, dropped=0, seconds=2.0, waited_s=waited_s)

    assert result.text() == "x.h5: 1 image, 1 embedded, 0 failed; 1 done now, 0 kept\n2.0 s, 0.5 images/s"


def test_waiting_for_large_images_is_waiting_for_their_decoding(tmp_path: Path) -> None:
    """A run over pictures of two million pixels waits for their decoding, hardly for their reading, and says so."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8))
    for number in range(3):
        noise.save(tmp_path / f"{number}.png", compress_level=1)

    result, _ = embed_colours(tmp_path, tmp_path / "x.h5")

    assert result.waited_s["decode"] > result.waited_s["read"] > 0
    assert sum(result.waited_s.values()) <= result.seconds


def test_only_new_images_are_embedded_and_the_file_equals_one_made_at_once(photos: Path, tmp_path: Path) -> None:
    """After three pictures more, three are computed, and the bytes are those of a run over all thirteen."""
    embed_colours(photos, tmp_path / "x.h5")
    save_pictures(photos, [4711 % 1000, 512, 13])

    result, _ = embed_colours(photos, tmp_path / "x.h5")

    embed_colours(photos, tmp_path / "fresh.h5")
    assert (result.embedded, result.reused, result.total) == (3, 10, 13)
    assert (tmp_path / "x.h5").read_bytes() == (tmp_path / "fresh.h5").read_bytes()


def test_a_changed_image_is_embedded_again(photos: Path, tmp_path: Path) -> None:
    """A picture overwritten with another colour gets the new colour's row, and only it is computed."""
    embed_colours(photos, tmp_path / "x.h5")
    Image.new("RGB", (40, 40), (250, 250, 250)).save(photos / "odd" / "0003.png")
    os.utime(photos / "odd" / "0003.png", ns=(1, 1))

    result, _ = embed_colours(photos, tmp_path / "x.h5")

    with open_store(tmp_path / "x.h5") as store:
        np.testing.assert_allclose(store.features[store.paths.index("odd/0003.png")], 250, atol=0.01)
    assert result.embedded == 1


def test_images_that_have_gone_keep_their_row_until_pruned(photos: Path, tmp_path: Path) -> None:
    """A removed picture stays in the file, and `prune` drops it; neither computes anything."""
    embed_colours(photos, tmp_path / "x.h5")
    (photos / "odd" / "0003.png").unlink()

    kept, _ = embed_colours(photos, tmp_path / "x.h5")
    pruned, _ = embed_colours(photos, tmp_path / "x.h5", prune=True)

    assert (kept.total, kept.embedded, kept.gone, kept.dropped) == (10, 0, 1, 0)
    assert "10 kept, 1 of them of deleted images (`--prune` drops these), nothing was left to do" in kept.text()
    assert (pruned.total, pruned.embedded, pruned.gone, pruned.dropped) == (9, 0, 0, 1)
    assert pruned.text().endswith("0 done now, 9 kept, 1 dropped")


def test_new_images_beside_kept_rows_get_their_own_vectors(photos: Path, tmp_path: Path) -> None:
    """With one picture gone and another new, the new row holds the new picture's colour."""
    embed_colours(photos, tmp_path / "x.h5")
    (photos / "even" / "0000.png").unlink()
    save_pictures(photos, [77])

    embed_colours(photos, tmp_path / "x.h5")

    with open_store(tmp_path / "x.h5") as store:
        np.testing.assert_allclose(store.features[:], mean_colours(store.paths), atol=0.01)
        assert len(store) == 11


def test_an_interrupted_run_continues_and_ends_with_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    """Stopped after the first batch, the next run computes the other six images and the file equals an undisturbed one."""

    def stop(done: int, total: int, failed: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_colours(photos, tmp_path / "x.h5", on_progress=stop)

    assert not (tmp_path / "x.h5").exists()
    result, _ = embed_colours(photos, tmp_path / "x.h5")
    embed_colours(photos, tmp_path / "undisturbed.h5")
    assert (result.reused, result.embedded) == (4, 6)
    assert (tmp_path / "x.h5").read_bytes() == (tmp_path / "undisturbed.h5").read_bytes()


def test_other_options_are_refused_with_the_differences(photos: Path, tmp_path: Path) -> None:
    """A file made at 28 pixels is not continued at 42, and nothing of it is lost."""
    embed_colours(photos, tmp_path / "x.h5")
    before = (tmp_path / "x.h5").read_bytes()

    with pytest.raises(StoreError, match="made with other settings") as caught:
        embed_colours(photos, tmp_path / "x.h5", replace(CONFIG, size="42"))

    assert "preprocessing" in str(caught.value)
    assert (tmp_path / "x.h5").read_bytes() == before


@pytest.mark.parametrize("limit", [0, 0.05])
def test_too_many_failures_are_an_error_and_keep_what_is_done(photos: Path, tmp_path: Path, limit: float) -> None:
    """One broken picture of eleven is more than none, and more than 5 %; without the limit the run continues."""
    (photos / "a_broken.png").write_bytes(b"no picture")

    with pytest.raises(DinoExtractError, match="1 of 11 images could not be embedded"):
        embed_colours(photos, tmp_path / "x.h5", max_failures=limit)

    result, _ = embed_colours(photos, tmp_path / "x.h5", max_failures=0.5)
    assert (result.failed, result.reused) == (1, 4)


def test_a_share_of_all_images_may_be_the_whole(photos: Path, tmp_path: Path) -> None:
    """`max_failures="100%"` lets two of twelve images fail, where the count 1 does not."""
    for name in ("a_broken.png", "b_broken.png"):
        (photos / name).write_bytes(b"no picture")
    options = {"model": "tiny", "random_weights": 0, "size": 28, "workers": 1}

    assert embed(photos, tmp_path / "x.h5", max_failures="100%", **options).failed == 2

    with pytest.raises(DinoExtractError, match="2 of 12 images could not be embedded"):
        embed(photos, tmp_path / "y.h5", max_failures=1, **options)


def test_failures_of_earlier_runs_count_towards_the_limit(photos: Path, tmp_path: Path) -> None:
    """A file that already has a failed row is an error under `max_failures=0` when more images come."""
    (photos / "a_broken.png").write_bytes(b"no picture")
    embed_colours(photos, tmp_path / "x.h5")
    save_pictures(photos, [99])

    with pytest.raises(DinoExtractError, match="could not be embedded"):
        embed_colours(photos, tmp_path / "x.h5", max_failures=0)


def test_failed_images_are_tried_again_only_when_asked(photos: Path, tmp_path: Path) -> None:
    """`retry_failed` embeds an image that has become readable without its size and time having changed."""
    broken = photos / "even" / "0008.png"
    good = broken.read_bytes()
    info = broken.stat()
    broken.write_bytes(b"x" * len(good))
    os.utime(broken, ns=(info.st_atime_ns, info.st_mtime_ns))
    embed_colours(photos, tmp_path / "x.h5")
    broken.write_bytes(good)
    os.utime(broken, ns=(info.st_atime_ns, info.st_mtime_ns))

    plain, _ = embed_colours(photos, tmp_path / "x.h5")
    again, _ = embed_colours(photos, tmp_path / "x.h5", retry_failed=True)

    assert (plain.embedded, plain.failed) == (0, 1)
    assert (again.embedded, again.failed) == (1, 0)


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_gives_the_rows_of_its_folder(photos: Path, tmp_path: Path, kind: str) -> None:
    """The members of an archive get the same keys and vectors as the files they were made from."""
    shutil.make_archive(str(tmp_path / "photos"), kind, photos)

    embed_colours(photos, tmp_path / "folder.h5")
    embed_colours(tmp_path / f"photos.{kind}", tmp_path / "archive.h5")

    with open_store(tmp_path / "folder.h5") as folder, open_store(tmp_path / "archive.h5") as archived:
        assert folder.paths == archived.paths
        np.testing.assert_array_equal(folder.features[:], archived.features[:])


def test_native_aspect_stores_each_image_s_own_patch_grid(photos: Path, tmp_path: Path) -> None:
    """A 40 x 80 picture at shorter side 28 has a grid of 2 x 4 patches, a square one 2 x 2, each with its colours."""
    Image.new("RGB", (80, 40), (200, 100, 50)).save(photos / "wide.png")
    (photos / "broken.png").write_bytes(b"no picture")

    embed_colours(photos, tmp_path / "x.h5", replace(CONFIG, preprocess="native", tokens="cls,patch"))

    with open_store(tmp_path / "x.h5") as store:
        wide = store.patch_features[store.paths.index("wide.png")]
        square = store.patch_features[store.paths.index("even/0000.png")]
        assert wide.shape == (2, 4, 3)
        assert square.shape == (2, 2, 3)
        np.testing.assert_allclose(wide, np.broadcast_to([200, 100, 50], (2, 4, 3)), atol=0.01)
        assert [failure.path for failure in store.failures] == ["broken.png"]


def test_other_images_are_embedded_like_those_of_a_file(photos: Path, tmp_path: Path) -> None:
    """`embed_like` with a file's own images gives the file's vectors, leaves out what cannot be read, and says so to who asks."""
    (photos / "broken.png").write_bytes(b"no picture")
    embed(photos, tmp_path / "x.h5", model="tiny", random_weights=0, size="28", store_dtype="float32", workers=1)

    with open_store(tmp_path / "x.h5") as store:
        failed: list[tuple[str, str]] = []
        paths, features = embed_like(store, [str(photos)], on_failure=lambda path, error: failed.append((path, error)))
        assert [path for path, _ in failed] == [str(photos / "broken.png")]
        assert failed[0][1].startswith("decode: ")
        assert paths == [str(photos / path) for path in store.paths]
        np.testing.assert_allclose(features, store.features[:], atol=1e-6)


def test_a_file_without_cls_tokens_is_compared_with_no_image(photos: Path, tmp_path: Path) -> None:
    """`embed_like` of a file of mean tokens alone says which tokens it has, before the model is loaded."""
    embed(photos, tmp_path / "x.h5", model="tiny", random_weights=0, size=28, workers=1, tokens="mean")

    with open_store(tmp_path / "x.h5") as store, pytest.raises(ConfigError, match="has no CLS tokens to compare with, only mean"):
        embed_like(store, [str(photos)])


def test_one_image_may_stand_for_a_list(photos: Path, tmp_path: Path) -> None:
    """A path, as text or `Path`, is one source and not a list of letters, as it is one file; a single suffix is one suffix."""
    options = {"model": "tiny", "random_weights": 0, "size": 28, "workers": 1}
    (photos / "odd" / "0001.png").rename(photos / "odd" / "0001.gif")

    assert embed(photos, tmp_path / "x.h5", suffixes=".png", **options).total == 9
    with open_store(tmp_path / "x.h5") as store:
        for source in (photos / "odd" / "0003.png", str(photos / "odd" / "0003.png")):
            for file in (store, tmp_path / "x.h5"):
                paths, features = embed_like(file, source)
                assert (paths, features.shape) == ([str(photos / "odd" / "0003.png")], (1, 192))


def test_no_readable_image_is_one_sentence(photos: Path, tmp_path: Path) -> None:
    """`embed_like` of a damaged file alone says why it cannot be read."""
    embed(photos, tmp_path / "x.h5", model="tiny", random_weights=0, size="28", workers=1)
    (tmp_path / "broken.png").write_bytes(b"no picture")

    with (
        open_store(tmp_path / "x.h5") as store,
        pytest.raises(DinoExtractError, match="none of the 1 images can be read, the first because"),
    ):
        embed_like(store, [str(tmp_path / "broken.png")])


def test_weights_that_have_changed_are_noticed(photos: Path, tmp_path: Path) -> None:
    """Images cannot be compared with a file made with other weights."""
    embed(photos, tmp_path / "x.h5", model="tiny", random_weights=0, size="28", workers=1)

    with open_store(tmp_path / "x.h5") as store, pytest.raises(StoreError, match="was made with weights random:0"):
        embed_like(store, [str(photos)], random_weights=1)


def test_images_are_embedded_like_those_of_any_checkpoint(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that the table does not know, from a file under `~`, embeds again with nothing but the record."""
    monkeypatch.setenv("HOME", str(tmp_path))
    backbone = DinoVisionTransformer(BackboneConfig(embed_dim=128, depth=2, num_heads=2, image_size=28))
    torch.save(backbone.state_dict(), tmp_path / "odd.pth")
    embed(photos, tmp_path / "x.h5", weights="~/odd.pth", size=28, store_dtype="float32", workers=1)

    with open_store(tmp_path / "x.h5") as store:
        _, features = embed_like(store, photos)
        assert store.attrs["model"] not in checkpoints()
        assert store.attrs["weights_path"] == str(tmp_path / "odd.pth")
        np.testing.assert_allclose(features, store.features[:], atol=1e-5)


@pytest.mark.parametrize("policy", ["crop", "squash", "pad"])
def test_resizing_beside_the_model_gives_the_same_file(tmp_path: Path, policy: str) -> None:
    """Real JPEGs, small ones and some that the decoders resize anyway, and a damaged one: byte for byte the file of the usual way."""
    folder = tmp_path / "photos"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number, shape in enumerate([(30, 40), (64, 48), (200, 300), (97, 31), (1, 1), (1000, 1100), (28, 28), (5, 300), (120, 90)]):
        Image.fromarray(draw.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(folder / f"{number}.jpg")
    (folder / "broken.jpg").write_bytes(b"no picture")
    config = replace(CONFIG, preprocess=policy, tokens="cls,patch")

    for place in ("host", "device"):
        embed(folder, tmp_path / f"{place}.h5", **asdict(replace(config, resize=place)))

    with open_store(tmp_path / "device.h5") as store:
        assert [failure.path for failure in store.failures] == ["broken.jpg"]
    assert (tmp_path / "device.h5").read_bytes() == (tmp_path / "host.h5").read_bytes()


def test_native_images_cannot_be_resized_together(photos: Path, tmp_path: Path) -> None:
    """`--resize device` with images of their own shapes is refused in a sentence."""
    with pytest.raises(ConfigError, match="needs images of one size"):
        prepare([str(photos)], tmp_path / "x.h5", replace(CONFIG, preprocess="native", resize="device"))


def test_options_of_speed_alone_do_not_make_another_file(photos: Path, tmp_path: Path) -> None:
    """Batch, workers, compilation and the place of resizing are no part of what a file records, so a run may go on with others."""
    fast = replace(CONFIG, batch=2, workers=2, compile="on", resize="device")

    layouts = [prepare([str(photos)], tmp_path / "x.h5", config).layout for config in (CONFIG, fast)]

    assert layouts[0] == layouts[1]


def test_a_misspelt_argument_is_named_with_the_one_that_was_meant(photos: Path, tmp_path: Path) -> None:
    """`embed` refuses an unknown argument at once, whether it is like an option or like one of its own."""
    with pytest.raises(ConfigError, match="did you mean `model`"):
        embed(photos, tmp_path / "x.h5", modle="tiny")
    with pytest.raises(ConfigError, match="did you mean `overwrite`"):
        embed(photos, tmp_path / "x.h5", overwrit=True)


def test_a_missing_folder_is_reported_before_the_model_is_loaded(photos: Path, tmp_path: Path) -> None:
    """A target in a folder that does not exist is refused even when the model cannot be had."""
    with pytest.raises(ConfigError, match="its folder does not exist"):
        embed(photos, tmp_path / "nodir" / "x.h5", model="no-such-model")


def test_options_may_be_lists(photos: Path, tmp_path: Path) -> None:
    """Lists, a pair and a `torch.device` mean what the text of the command line does: a second run finds nothing to do."""
    common = {"model": "tiny", "random_weights": 0, "workers": 1, "dtype": "float32"}
    embed(photos, tmp_path / "x.h5", **common, tokens=["cls", "mean"], layers=[2, 5], size=(28, 42), device=torch.device("cpu"))

    again = embed(photos, tmp_path / "x.h5", **common, tokens="cls,mean", layers="2,5", size="28x42", device="cpu")

    assert again.embedded == 0


def test_the_size_is_that_of_the_model_unless_given(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images become 224 pixels wide, or what the checkpoint or the table says that the model is best given, or what is asked for."""
    monkeypatch.setitem(checkpoints(), "tiny", replace(checkpoints()["tiny"], size=112))
    backbone = DinoVisionTransformer(BackboneConfig(embed_dim=32, depth=2, num_heads=2, image_size=56))
    weights = tmp_path / "trained.safetensors"
    save_checkpoint(weights, backbone.state_dict(), backbone.config, name="mine", licence="none", record={"size": 56})
    of_table = tmp_path / "tiny.safetensors"
    save_checkpoint(of_table, backbone.state_dict(), backbone.config, name="tiny", licence="none")

    def width(**options: Any) -> int:
        return prepare([str(photos)], tmp_path / "x.h5", EmbedConfig(**options)).settings.preprocess.width

    assert width(model="vits14", random_weights=0) == 224
    assert width(model="tiny", random_weights=0) == 112
    assert width(weights=str(of_table)) == 112
    assert width(weights=str(weights)) == 56
    assert width(weights=str(weights), size="28") == width(weights=str(weights), size=28) == 28


def test_jpegs_decoded_beside_the_model_give_the_same_rows(tmp_path: Path) -> None:
    """On a CPU `decode="device"` has the rows and failures of `host`: small and large JPEGs, other kinds, damaged ones."""
    pytest.importorskip("torchcodec.decoders", reason="the extra `gpu-decode` is not installed")
    rng = np.random.default_rng(0)
    photos = tmp_path / "photos"
    photos.mkdir()
    kinds = {"a.jpg": {}, "b.png": {}, "c.jpg": {"progressive": True}, "d.jpg": {"subsampling": 0}, "e.jpg": {}, "f.jpg": {}, "g.jpg": {}}
    for name, options in kinds.items():
        picture = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((200, 150))
        picture.save(photos / name, **options)  # type: ignore[arg-type]
    (photos / "e.jpg").write_bytes((photos / "e.jpg").read_bytes()[:-500])  # cut: the decoders find it
    start = (photos / "f.jpg").read_bytes()[:300]
    (photos / "f.jpg").write_bytes(start + b"\xff\xd9")  # a good beginning and end, and no picture between them: found beside the model
    results = [embed(photos, tmp_path / f"{where}.h5", **{**asdict(CONFIG), "decode": where, "batch": 3}) for where in ("host", "device")]

    with open_store(tmp_path / "host.h5") as host, open_store(tmp_path / "device.h5") as device:
        assert host.paths == device.paths == ["a.jpg", "b.png", "c.jpg", "d.jpg", "g.jpg"]
        np.testing.assert_array_equal(host.features[:], device.features[:])
        np.testing.assert_array_equal(host.image_size, device.image_size)
        assert [(path, status) for path, status, _ in host.failures] == [(path, status) for path, status, _ in device.failures]
        assert all(error.startswith("decode: ") for _, _, error in device.failures)
    assert [(result.total, result.failed) for result in results] == [(7, 2), (7, 2)]


def test_the_loader_leaves_plain_jpegs_as_they_are(tmp_path: Path) -> None:
    """With `decode="device"` the bytes of plain JPEGs come, large ones too, and other kinds decoded."""
    pytest.importorskip("torchcodec.decoders", reason="the extra `gpu-decode` is not installed")
    for name, size in (("a.jpg", (60, 40)), ("b.png", (60, 40)), ("c.jpg", (2000, 1500)), ("d.png", (2000, 1500))):
        Image.new("RGB", size, (200, 30, 90)).save(tmp_path / name)
    job = prepare([str(tmp_path)], tmp_path / "x.h5", replace(CONFIG, decode="device"))

    with job.loader(np.arange(4)) as loader:
        (batch,) = loader

    assert [isinstance(image, Jpeg) for image in batch.pixels] == [True, False, True, False]
    assert all(
        image.content.tobytes() == (tmp_path / name).read_bytes() for image, name in zip(batch.pixels[::2], ("a.jpg", "c.jpg"), strict=True)
    )
    assert batch.is_resized.tolist() == [False, False, False, True]
    assert batch.image_size.tolist() == [[40, 60], [40, 60], [1500, 2000], [1500, 2000]]


def test_several_devices_take_batches_in_turn(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two devices give the bytes of one; every other batch goes to the same, and the last one alone takes over the weights."""
    engines = []
    submit = Engine.submit

    def noting(self: Engine, pixels: Any) -> Any:
        engines.append(self)
        return submit(self, pixels)

    monkeypatch.setattr(Engine, "submit", noting)
    options = {**asdict(CONFIG), "batch": 2, "tokens": "cls,patch"}

    embed(photos, tmp_path / "two.h5", **{**options, "device": [torch.device("cpu")] * 2})

    assert len(engines) == 5
    assert engines[0] is engines[2] is engines[4]
    assert engines[1] is engines[3] is not engines[0]
    embed(photos, tmp_path / "one.h5", **options)
    assert (tmp_path / "two.h5").read_bytes() == (tmp_path / "one.h5").read_bytes()


def test_weights_in_a_folder_of_any_name_are_found_again(photos: Path, tmp_path: Path) -> None:
    """A checkpoint whose path is not UTF-8 is recorded, and images are embedded by it again."""
    folder = tmp_path / os.fsdecode(b"w\xff\\x")
    folder.mkdir()
    backbone = DinoVisionTransformer(BackboneConfig(embed_dim=64, depth=2, num_heads=1, image_size=28))
    save_checkpoint(folder / "mine.safetensors", backbone.state_dict(), backbone.config, name="mine", licence="none")
    embed(photos, tmp_path / "x.h5", weights=folder / "mine.safetensors", size=28, workers=1)

    paths, features = embed_like(tmp_path / "x.h5", photos)

    with open_store(tmp_path / "x.h5") as store:
        assert [os.path.relpath(path, photos) for path in paths] == store.paths
        np.testing.assert_allclose(features, store.features[:], atol=2e-2)
