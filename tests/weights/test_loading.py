"""A backbone comes with the right weights, found where they are, or with an error that says everything needed to get them."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dino_extract.backbone import BackboneConfig
from dino_extract.errors import ConfigError, WeightsError
from dino_extract.weights import cache, locate, registry
from dino_extract.weights.checkpoint import backbone_config, save_checkpoint
from dino_extract.weights.files import write_pickle, write_safetensors
from dino_extract.weights.layouts import from_official
from dino_extract.weights.loading import load, load_backbone
from dino_extract.weights.registry import Checkpoint, Mirror, find_checkpoint
from dino_extract.weights.untrained import untrained_backbone
from tests.weights.conftest import SMALL_ARCHITECTURE, Misbehaving

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .pth file in the official format that the tests take for a released model."""
    path = tmp_path_factory.mktemp("released") / "dinov2_test_pretrain.pth"
    write_pickle(path, untrained_backbone(BackboneConfig(**SMALL_ARCHITECTURE), seed=1).state_dict())
    return path


@pytest.fixture
def model(released: Path, server: Misbehaving, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    """A model `test` in the table that is released at the local server and mirrored at Hugging Face."""
    server.body = released.read_bytes()
    entry = replace(
        find_checkpoint("tiny"),
        name="test",
        aliases=("dinov2_test",),
        architecture=SMALL_ARCHITECTURE,
        url=f"{server.url}/dinov2_test_pretrain.pth",
        sha256=server.sha256,
        size_bytes=len(server.body),
        mirrors=(Mirror("someone/dinov2-test", "model.safetensors"),),
    )
    monkeypatch.setattr(registry, "read_table", lambda _: {"test": entry})
    return entry


def state_of(path: Path) -> dict[str, Tensor]:
    """Tensors of a .pth file."""
    return torch.load(path, weights_only=True)


def assert_has_weights(module: torch.nn.Module, path: Path) -> None:
    """The module has exactly the tensors of a .pth file."""
    want = state_of(path)
    got = module.state_dict()
    assert got.keys() == want.keys()
    assert all(torch.equal(got[key], want[key]) for key in want)


def test_missing_weights_are_downloaded_once(model: Checkpoint, server: Misbehaving, released: Path) -> None:
    """The first load downloads, checks and keeps safetensors alone; the second reads the cache; both name the released hash."""
    first, second = load("test"), load("test")

    assert len([request for request in server.requests if "Host" in request]) == 1
    assert_has_weights(second.module, released)
    assert first.weights_sha256 == second.weights_sha256 == model.sha256
    assert {path.name for path in locate.cache_dir().iterdir()} == {"test.safetensors"}
    assert second.licence == "Apache-2.0"
    assert second.name == "test"


def test_loaded_module_is_ready_for_inference(model: Checkpoint) -> None:
    """The module is in eval mode and float32."""
    module = load_backbone("dinov2_test")

    assert not module.training
    assert {tensor.dtype for tensor in module.state_dict().values()} == {torch.float32}


def test_offline_and_missing_says_everything(model: Checkpoint, bare_machine: Path, server: Misbehaving) -> None:
    """The error names file, size, hash, address, every place that was looked at, and what to do."""
    with pytest.raises(WeightsError) as caught:
        load("test", offline=True)

    message, hint = caught.value.message, caught.value.hint or ""
    for part in ["`dinov2_test_pretrain.pth`", f"{model.size_bytes:,} bytes", str(model.sha256), str(model.url), "downloading is off"]:
        assert part in message
    for place in [
        "dino-extract/weights/test.safetensors",
        "torch/hub/checkpoints/dinov2_test_pretrain.pth",
        "huggingface/hub/models--someone--dinov2-test",
    ]:
        assert str(bare_machine / place) in message
    assert str(registry.weights_folder() / "dinov2_test_pretrain.pth") in message
    assert "weights pull test" in hint
    assert "--weights PATH" in hint
    assert server.requests == []


def test_environment_turns_downloading_off(model: Checkpoint, server: Misbehaving, monkeypatch: pytest.MonkeyPatch) -> None:
    """`DINO_EXTRACT_OFFLINE=1` is the same as `--offline`."""
    monkeypatch.setenv("DINO_EXTRACT_OFFLINE", "1")

    with pytest.raises(WeightsError, match="downloading is off"):
        load("test")

    assert server.requests == []


@pytest.mark.parametrize("arguments", ["offline=True", ""])
def test_missing_weights_are_an_error_within_two_seconds(arguments: str) -> None:
    """A new process without network, or told not to use it, says so within two seconds."""
    code = f"from dino_extract.weights import ensure_available; ensure_available('vits14', {arguments})"
    start = time.monotonic()

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=REPOSITORY)

    assert time.monotonic() - start < 2
    assert "the weights of `vits14` are not on this machine" in done.stderr


def test_torch_hub_copy_is_used(model: Checkpoint, bare_machine: Path, released: Path, server: Misbehaving) -> None:
    """A released file that torch.hub has downloaded is read where it is."""
    folder = bare_machine / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    shutil.copy(released, folder / "dinov2_test_pretrain.pth")

    loaded = load("test", offline=True)

    assert_has_weights(loaded.module, released)
    assert loaded.weights_sha256 == model.sha256
    assert loaded.weights_source.startswith("torch hub: ")


def hugging_face_copy(bare_machine: Path, released: Path, *, blob: str | None = None) -> Path:
    """The model as the Hugging Face cache keeps it: a link to a file that is named by its hash."""
    repository = bare_machine / "huggingface" / "hub" / "models--someone--dinov2-test"
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "blobs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    write_safetensors(repository / "file", from_official(state_of(released), "hf"))
    sha256 = hashlib.sha256((repository / "file").read_bytes()).hexdigest()
    target = (repository / "file").rename(repository / "blobs" / (blob or sha256))
    (repository / "snapshots" / "abc" / "model.safetensors").symlink_to(target)
    return target


def test_hugging_face_copy_is_used(model: Checkpoint, bare_machine: Path, released: Path) -> None:
    """A file in the Hugging Face cache is read where it is, and identified by its own hash."""
    blob = hugging_face_copy(bare_machine, released)

    loaded = load("test", offline=True)

    assert_has_weights(loaded.module, released)
    assert loaded.weights_sha256 == blob.name


def test_downloaded_weights_are_named_as_they_are_afterwards(model: Checkpoint, bare_machine: Path) -> None:
    """A file's record does not tell whether the weights were downloaded for it, so that a run killed and continued gives the same bytes."""
    first, second = load("test"), load("test", offline=True)

    assert first.weights_source == second.weights_source
    assert first.weights_sha256 == second.weights_sha256


def test_damaged_hugging_face_copy_is_passed_over(model: Checkpoint, bare_machine: Path, released: Path) -> None:
    """A file that does not have the hash it is named by is not used, and the error says so."""
    hugging_face_copy(bare_machine, released, blob="0" * 64)

    with pytest.raises(WeightsError, match=f"not usable: .*expected {'0' * 64}"):
        load("test", offline=True)


def test_damaged_torch_hub_copy_is_passed_over(model: Checkpoint, bare_machine: Path, released: Path) -> None:
    """A half-downloaded file in the torch hub cache is not used; the weights are downloaded instead."""
    folder = bare_machine / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "dinov2_test_pretrain.pth").write_bytes(released.read_bytes()[:100_000])

    loaded = load("test")

    assert loaded.weights_source.startswith("cache")
    assert_has_weights(loaded.module, released)


def test_bundled_file_comes_first(model: Checkpoint, released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that comes with dino-extract is read from its folder, checked against its hash."""
    bundled = tmp_path / "bundled"
    config = backbone_config(model)
    save_checkpoint(bundled / "test.safetensors", state_of(released), config, name="test", licence="Apache-2.0")
    sha256 = hashlib.sha256((bundled / "test.safetensors").read_bytes()).hexdigest()
    entry = replace(model, bundled_file="test.safetensors", sha256=sha256, url=None)
    monkeypatch.setattr(registry, "read_table", lambda _: {"test": entry})
    monkeypatch.setattr(locate, "weights_folder", lambda: bundled)

    loaded = load("test", offline=True)

    assert loaded.weights_source.startswith("bundled: ")
    assert loaded.weights_sha256 == sha256


def test_flipped_bit_in_the_cache_is_found(model: Checkpoint) -> None:
    """One changed bit of a tensor in the cache is an error, not other features."""
    path = cache.fetch(model)
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)

    with pytest.raises(WeightsError, match="is damaged: its tensors are not those that were written"):
        load("test")


def test_foreign_file_in_the_cache_is_refused(model: Checkpoint) -> None:
    """A file under the name of a released model that was made from something else is not taken for it."""
    config = backbone_config(model)
    save_checkpoint(locate.cached_path("test"), untrained_backbone(config, 5).state_dict(), config, name="test", licence="x")

    with pytest.raises(WeightsError, match="was not made from a released file of `test`"):
        load("test")


def test_only_released_files_are_imported(model: Checkpoint, tmp_path: Path) -> None:
    """A file with another hash does not get into the cache under the name of a released model."""
    write_pickle(tmp_path / "own.pth", untrained_backbone(backbone_config(model), 5).state_dict())

    with pytest.raises(WeightsError, match="which is not that of a released file of `test`") as refused:
        cache.add_file(tmp_path / "own.pth", model)

    assert f"is copied to `{locate.cached_path('test')}`" in str(refused.value.hint)
    assert not locate.cached_path("test").exists()


def test_imported_file_is_used_offline(model: Checkpoint, released: Path) -> None:
    """A released file that was copied to the machine works like a downloaded one."""
    cache.add_file(released, model)

    loaded = load("test", offline=True)

    assert loaded.weights_sha256 == model.sha256
    assert_has_weights(loaded.module, released)


def test_mirror_is_tried_where_the_first_server_fails(model: Checkpoint, server: Misbehaving, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the released file cannot be had, a mirror with a known hash is used."""
    server.statuses = [403]
    source = cache.Source(f"{server.url}/mirror.pth", server.sha256, len(server.body))
    monkeypatch.setattr(cache, "sources_of", lambda _: [source, source])

    cache.fetch(model)

    assert load("test", offline=True).weights_sha256 == server.sha256


def test_failed_download_names_the_reason(model: Checkpoint, server: Misbehaving) -> None:
    """The error of a download that failed says why, and still where to put the file by hand."""
    server.statuses = [404]

    with pytest.raises(WeightsError, match=r"could not be downloaded \(.* answers 404 Not Found\)"):
        load("test")


def test_our_file_needs_no_model_name(tmp_path: Path) -> None:
    """A fine-tuning folder is loaded with the architecture, name and position interpolation that its file tells."""
    config = replace(backbone_config(find_checkpoint("tiny")), interpolate_offset=0.1, interpolate_antialias=False, num_heads=6)
    trained = untrained_backbone(config, seed=3)
    save_checkpoint(tmp_path / "run" / "model.safetensors", trained.state_dict(), config, name="tiny", licence="CC0")

    loaded = load(weights=tmp_path / "run")

    assert loaded.name == "tiny"
    assert loaded.licence == "CC0"
    assert loaded.weights_sha256 == hashlib.sha256((tmp_path / "run" / "model.safetensors").read_bytes()).hexdigest()
    images = torch.randn(1, 3, 112, 140)
    with torch.inference_mode():
        assert torch.equal(loaded.module(images).patches, trained(images).patches)


def test_half_precision_file_is_loaded_as_float32(tmp_path: Path) -> None:
    """Weights stored in bfloat16 are computed in float32 with the same values."""
    config = backbone_config(find_checkpoint("tiny"))
    state = {key: tensor.bfloat16() for key, tensor in untrained_backbone(config, 0).state_dict().items()}
    save_checkpoint(tmp_path / "half.safetensors", state, config, name="tiny", licence="x")

    module = load_backbone(weights=tmp_path / "half.safetensors")

    assert all(torch.equal(tensor, state[key].float()) for key, tensor in module.state_dict().items())
    assert {tensor.dtype for tensor in module.state_dict().values()} == {torch.float32}


def test_weights_of_another_model_are_refused(released: Path) -> None:
    """A file of another architecture than asked for is an error that names the differences and the right name."""
    with pytest.raises(
        WeightsError, match="is not a `vits14` checkpoint: embed_dim is 128, expected 384; depth is 2, expected 12"
    ) as caught:
        load("vits14", weights=released)

    assert caught.value.hint == "its architecture is that of `vit-d128-l2-p14-reg4`"


def test_metadata_that_contradict_the_tensors_are_refused(tmp_path: Path) -> None:
    """A header that claims another depth than the tensors have is an error."""
    config = backbone_config(find_checkpoint("tiny"))
    metadata = {"name": "x", "config": {"depth": 10**9}}
    write_safetensors(tmp_path / "x.safetensors", untrained_backbone(config, 0).state_dict(), metadata)

    with pytest.raises(WeightsError, match="metadata that contradict its tensors in depth"):
        load(weights=tmp_path / "x.safetensors")


def test_random_weights_depend_on_the_seed_alone() -> None:
    """The same seed gives the same weights, another seed others, and torch's own generator is untouched."""
    before = torch.random.get_rng_state()

    first, again, other = (load("tiny", random_weights=seed) for seed in (0, 0, 1))

    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.module.parameters(), again.module.parameters(), strict=True))
    assert not torch.equal(first.module.state_dict()["cls_token"], other.module.state_dict()["cls_token"])
    assert first.weights_sha256 == "random:0"


@pytest.mark.parametrize("name", ["tiny", "vits14"])
def test_random_weights_tell_images_apart(name: str) -> None:
    """CLS tokens of different images under random weights point in clearly different directions."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, 1, 1, generator=generator) + torch.randn(8, 3, 56, 56, generator=generator)
    module = load_backbone(name, random_weights=0)

    with torch.inference_mode():
        cls = torch.nn.functional.normalize(module(images).cls, dim=-1)

    cosines = (cls @ cls.T)[~torch.eye(8, dtype=torch.bool)]
    assert cosines.max() < 0.99
    assert cosines.mean() < 0.9


def test_weights_and_random_weights_exclude_each_other(released: Path) -> None:
    """Asking for both is an error."""
    with pytest.raises(ConfigError, match="either a weights file or random weights"):
        load("tiny", weights=released, random_weights=0)


def test_a_model_without_weights_says_what_is_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is in the table for its architecture only is an error that names the two ways to use it."""
    entry = replace(find_checkpoint("tiny"), name="planned", aliases=(), bundled_file=None)
    monkeypatch.setattr(registry, "read_table", lambda _: {"planned": entry})

    with pytest.raises(WeightsError, match="there are no weights for `planned`") as caught:
        load("planned")

    assert "--random-weights SEED" in (caught.value.hint or "")


def test_header_of_our_files_can_be_read_by_others(tmp_path: Path) -> None:
    """What dino-extract says about a file is JSON in the safetensors header."""
    from safetensors import safe_open

    config = backbone_config(find_checkpoint("tiny"))
    save_checkpoint(
        tmp_path / "x.safetensors", untrained_backbone(config, 0).state_dict(), config, name="tiny", licence="CC0", record={"epoch": 3}
    )

    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        said = json.loads(file.metadata()["dino_extract"])

    assert said["format"] == 1
    assert said["epoch"] == 3
    assert said["config"]["embed_dim"] == 192
