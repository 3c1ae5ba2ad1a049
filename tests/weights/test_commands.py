"""The `weights` commands print data on stdout, everything else on stderr, and end with the right code."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from dino_extract.backbone import BackboneConfig
from dino_extract.cli.weights import app
from dino_extract.errors import WeightsError
from dino_extract.weights import locate, registry
from dino_extract.weights.checkpoint import save_checkpoint
from dino_extract.weights.files import write_pickle
from dino_extract.weights.registry import Checkpoint, checkpoints, find_checkpoint
from dino_extract.weights.resolve import ensure_available
from dino_extract.weights.untrained import untrained_backbone
from tests.weights.conftest import SMALL_ARCHITECTURE, Misbehaving


def run(*arguments: object) -> Result:
    """The result of `dino-extract weights ARGUMENTS`."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def model(server: Misbehaving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    """A model `test` in the table that is released at the local server."""
    write_pickle(tmp_path / "released.pth", untrained_backbone(BackboneConfig(**SMALL_ARCHITECTURE), seed=1).state_dict())
    server.body = (tmp_path / "released.pth").read_bytes()
    entry = replace(
        find_checkpoint("tiny"),
        name="test",
        aliases=(),
        architecture=SMALL_ARCHITECTURE,
        url=f"{server.url}/test.pth",
        sha256=server.sha256,
        size_bytes=len(server.body),
        bundled_file=None,
    )
    monkeypatch.setattr(registry, "read_table", lambda _: {"test": entry})
    return entry


def test_list_names_every_model() -> None:
    """`list` has one line for each model, with its size and licence."""
    result = run("list")

    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(checkpoints())
    assert lines[1].split() == ["vits14", "22,056,576", "88", "MB", "Apache-2.0", "no"]


def test_list_works_without_access_to_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`list` shows the models even if the cache cannot be read (a name too long, or the home of another user)."""
    monkeypatch.setenv("DINO_EXTRACT_CACHE", str(tmp_path / ("x" * 300)))

    result = run("list")

    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == list(checkpoints())


def test_list_is_json_on_demand(model: Checkpoint) -> None:
    """`list --json` says where the weights are."""
    run("pull", "test")

    (row,) = json.loads(run("list", "--json").stdout)

    assert row["sha256"] == model.sha256
    assert row["present"] == [{"kind": "cache", "path": str(locate.cached_path("test"))}]


def test_pull_prints_the_path_alone(model: Checkpoint) -> None:
    """`pull` downloads and prints the file, and `path` prints the same."""
    pulled, path = run("pull", "test"), run("path", "test")

    assert pulled.exit_code == 0
    assert pulled.stdout == path.stdout == f"{locate.cached_path('test')}\n"


def test_pull_with_overwrite_replaces_a_damaged_copy(model: Checkpoint) -> None:
    """`pull --overwrite` downloads again."""
    run("pull", "test")
    locate.cached_path("test").write_bytes(b"damaged")

    result = run("pull", "--overwrite", "test")

    assert result.exit_code == 0
    assert run("verify", "test").exit_code == 0


def test_pull_with_overwrite_keeps_the_copy_without_a_network(model: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pull --overwrite` without a server in reach is an error, and the good copy is still there."""
    run("pull", "test")
    before = locate.cached_path("test").read_bytes()
    monkeypatch.setattr(registry, "read_table", lambda _: {"test": replace(model, url="http://127.0.0.1:9/test.pth")})

    result = run("pull", "--overwrite", "test")

    assert isinstance(result.exception, WeightsError)
    assert locate.cached_path("test").read_bytes() == before


def test_pull_into_a_folder_that_cannot_be_written_is_one_sentence(
    model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the folder and the variable that chooses another one, from `pull` and from what needs the weights."""
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("DINO_EXTRACT_CACHE", str(tmp_path / "file" / "inside"))

    pulled = run("pull", "test").exception

    assert isinstance(pulled, WeightsError)
    assert pulled.message == f"folder `{tmp_path}/file/inside/weights` cannot be written: Not a directory"
    assert "DINO_EXTRACT_CACHE" in str(pulled.hint)
    with pytest.raises(WeightsError, match=r"could not be downloaded .* cannot be written: Not a directory; .* DINO_EXTRACT_CACHE"):
        ensure_available("test")


def test_pull_without_a_network_says_which_file_to_copy_where(model: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network the hint of `pull` has the file, its hash, its address and its place on this machine."""
    unreachable = replace(model, url="http://127.0.0.1:9/test.pth")
    monkeypatch.setattr(registry, "read_table", lambda _: {"test": unreachable})

    result = run("pull", "test")

    assert isinstance(result.exception, WeightsError)
    for part in ["`test.pth`", str(model.sha256), "http://127.0.0.1:9/test.pth", "hub/checkpoints/test.pth"]:
        assert part in str(result.exception.hint)


def test_path_of_missing_weights_is_an_error(model: Checkpoint, server: Misbehaving) -> None:
    """`path` never downloads, and says so."""
    result = run("path", "test")

    assert isinstance(result.exception, WeightsError)
    assert "are not on this machine and `weights path` never downloads\n  file: `test.pth`, " in result.exception.message
    assert server.requests == []


def test_verify_recognises_a_released_file(model: Checkpoint) -> None:
    """`verify` of an untouched download says which model it is."""
    run("pull", "test")

    (result,) = json.loads(run("verify", "test", "--json").stdout)

    assert result["problem"] is None
    assert result["released"] == "test"
    assert result["parameters"] == sum(p.numel() for p in untrained_backbone(BackboneConfig(**SMALL_ARCHITECTURE), 0).parameters())


def test_verify_ends_with_one_on_damage(model: Checkpoint) -> None:
    """`verify` finds one flipped bit, says so, and ends with 1."""
    run("pull", "test")
    path = locate.cached_path("test")
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)

    result = run("verify")

    assert result.exit_code == 1
    assert result.stdout.startswith("damaged\t")


def test_verify_of_a_local_file_says_what_it_is(tmp_path: Path) -> None:
    """`verify PATH` reads any checkpoint and says that it is not a released file."""
    config = BackboneConfig(embed_dim=128, depth=2, num_heads=2, image_size=70)
    save_checkpoint(tmp_path / "x.safetensors", untrained_backbone(config, 0).state_dict(), config, name="mine", licence="CC0")

    result = run("verify", tmp_path / "x.safetensors")

    assert result.exit_code == 0
    assert result.stdout.startswith("ok\tmine, not a released file\t")


def test_import_puts_a_released_file_into_the_cache(model: Checkpoint, tmp_path: Path) -> None:
    """`import` takes a copy of the released file and prints where it is now."""
    result = run("import", tmp_path / "released.pth", "--name", "test")

    assert result.stdout == f"{locate.cached_path('test')}\n"
    assert run("verify", "test").exit_code == 0


def test_convert_writes_another_layout(tmp_path: Path) -> None:
    """`convert` prints the file on stdout and notes on stderr."""
    config = BackboneConfig(embed_dim=128, depth=2, num_heads=2, image_size=70)
    torch.save(
        {"teacher": {f"backbone.{key}": tensor for key, tensor in untrained_backbone(config, 0).state_dict().items()}},
        tmp_path / "teacher_checkpoint.pth",
    )

    result = run("convert", tmp_path / "teacher_checkpoint.pth", tmp_path / "x.safetensors", "--to", "timm")

    assert result.exit_code == 0
    assert result.stdout == f"{tmp_path / 'x.safetensors'}\n"
    assert "note: the weights are those of `teacher` in the file" in result.stderr


def test_onnx_takes_a_file_or_a_name(tmp_path: Path) -> None:
    """`onnx` prints the file alone on stdout. A source that is neither a file nor a model is an error."""
    save_checkpoint(
        tmp_path / "small.safetensors",
        untrained_backbone(BackboneConfig(**SMALL_ARCHITECTURE), seed=1).state_dict(),
        BackboneConfig(**SMALL_ARCHITECTURE),
        name="small",
        licence="none",
    )

    result = run("onnx", tmp_path / "small.safetensors", tmp_path / "small.onnx", "--size", 28)

    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / 'small.onnx'}\n"
    assert "largest difference from the model" in result.stderr
    with pytest.raises(WeightsError, match="there is no model `tinny`"):
        CliRunner().invoke(app, ["onnx", "tinny", str(tmp_path / "x.onnx")], catch_exceptions=False)
