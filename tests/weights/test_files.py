"""Files that are damaged, hostile or not checkpoints are errors, never code that runs and never memory that fills."""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dino_extract.errors import WeightsError
from dino_extract.weights.files import MAX_HEADER_BYTES, read_tensor_file, write_pickle, write_safetensors


def safetensors_with(header: Any, length: int | None = None, data: bytes = b"") -> bytes:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


class PlantedCode:
    """An object whose pickle makes a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol_first", ["zip", "legacy", "bare"])
def test_code_in_a_pickle_does_not_run(protocol_first: str, tmp_path: Path) -> None:
    """Code planted in a .pth file of any age is refused and does not run."""
    planted = {"weight": torch.zeros(1), "evil": PlantedCode(tmp_path / "ran")}
    path = tmp_path / "evil.pth"
    if protocol_first == "bare":
        path.write_bytes(pickle.dumps(planted["evil"]))
    else:
        torch.save(planted, path, _use_new_zipfile_serialization=protocol_first == "zip")

    with pytest.raises(WeightsError, match="cannot be read as a PyTorch checkpoint"):
        read_tensor_file(path)

    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "is neither a safetensors file nor a PyTorch checkpoint", id="empty"),
        pytest.param(b"<html>404</html>", "is neither a safetensors file nor a PyTorch checkpoint", id="web page"),
        pytest.param(b"PK\x03\x04" + b"x" * 100, "cannot be read as a PyTorch checkpoint", id="broken zip"),
        pytest.param(b"\x80\x02garbage", "cannot be read as a PyTorch checkpoint", id="broken pickle"),
        pytest.param(
            safetensors_with({}, length=MAX_HEADER_BYTES + 1),
            "has a header of 8,388,609 bytes, expected at most 8,388,608",
            id="header too long",
        ),
        pytest.param(safetensors_with(b"{broken"), "its header is not JSON", id="header not JSON"),
        pytest.param(safetensors_with(b'{"a":' + b"[" * 100_000), "its header is not JSON", id="header nested too deep"),
        pytest.param(
            safetensors_with({str(i): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(20_001)}),
            "20,001 tensors, expected at most 20,000",
            id="many",
        ),
        pytest.param(
            safetensors_with({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}), "damaged safetensors file", id="data missing"
        ),
        pytest.param(
            safetensors_with({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}),
            "damaged safetensors file",
            id="shape overflows",
        ),
        pytest.param(safetensors_with({"a": "b"}), "damaged safetensors file", id="entry is no tensor"),
        pytest.param(safetensors_with({"__metadata__": {"dino_extract": "{"}}), "damaged `dino_extract` metadata", id="metadata not JSON"),
        pytest.param(
            safetensors_with({"__metadata__": {"dino_extract": '{"format": 99}'}}), "metadata of format 99, expected 1", id="newer format"
        ),
    ],
)
def test_broken_file_is_an_error(content: bytes, message: str, tmp_path: Path) -> None:
    """Damaged and absurd files are told from checkpoints, with the reason."""
    (tmp_path / "file").write_bytes(content)

    with pytest.raises(WeightsError, match=message):
        read_tensor_file(tmp_path / "file")


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
def test_truncated_files_are_errors(keep: float, tmp_path: Path) -> None:
    """A file that was copied in part is an error, in both formats."""
    tensors = {"a": torch.zeros(100_000)}
    write_pickle(tmp_path / "a.pth", tensors)
    write_safetensors(tmp_path / "a.safetensors", tensors)
    for path in (tmp_path / "a.pth", tmp_path / "a.safetensors"):
        content = path.read_bytes()
        path.write_bytes(content[: int(keep * len(content))])

        with pytest.raises(WeightsError):
            read_tensor_file(path)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (torch.zeros(3), "holds a Tensor, expected a dictionary of tensors"),
        ({"epoch": 3, "weight": torch.zeros(1)}, r"entries that are not tensors: epoch \(1 in all\)"),
        ({"weight": torch.zeros(1).expand(10**12)}, r"larger than what is stored of them: weight \(1 in all\)"),
    ],
)
def test_other_contents_are_named(saved: Any, message: str, tmp_path: Path) -> None:
    """A .pth file that is no dictionary of plain tensors is an error that says what it is."""
    torch.save(saved, tmp_path / "x.pth")

    with pytest.raises(WeightsError, match=message):
        read_tensor_file(tmp_path / "x.pth")


@pytest.mark.parametrize("name", ["model_0001.rank_3.pth", "model.pth"])
def test_rank_shard_is_explained(name: str, tmp_path: Path) -> None:
    """One rank's part of a distributed checkpoint is recognised, and the hint names the file to use instead."""
    torch.save({"model": {"teacher.backbone._flat_param": torch.zeros(9)}}, tmp_path / name)

    with pytest.raises(WeightsError, match="one rank's shard of a distributed training run") as caught:
        read_tensor_file(tmp_path / name)

    assert "teacher_checkpoint.pth" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("saved", "container"),
    [
        (("student", "average", "optimizer"), "average"),
        (("student", "average", "optimizer", "teacher"), "average"),  # a frozen one, in distillation
        (("student", "teacher"), "teacher"),
        (("average", "state_dict"), "state_dict"),
    ],
)
def test_the_most_useful_part_of_a_training_run_is_taken(saved: tuple[str, ...], container: str, tmp_path: Path) -> None:
    """Of a checkpoint of ours the student's average, of others' the teacher; what they may call an average is left alone."""
    torch.save({part: {"weight": torch.tensor([float(number)])} for number, part in enumerate(saved)}, tmp_path / "x.pt")

    file = read_tensor_file(tmp_path / "x.pt")

    assert (file.container, file.tensors["weight"].item()) == (container, saved.index(container))


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    """A path without a file says so."""
    with pytest.raises(WeightsError, match="No such file or directory"):
        read_tensor_file(tmp_path / "none.pth")


def test_files_before_torch_1_6_are_read(tmp_path: Path) -> None:
    """The old format of .pth files, which is no zip archive, is read as well."""
    torch.save({"weight": torch.arange(3.0)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)

    assert read_tensor_file(tmp_path / "old.pth").tensors["weight"].tolist() == [0, 1, 2]


def test_tensors_that_share_memory_are_written(tmp_path: Path) -> None:
    """Views of one tensor, such as the thirds of a projection, are written each by itself."""
    fused = torch.arange(6.0)

    write_safetensors(tmp_path / "x.safetensors", {"a": fused[:3], "b": fused[3:], "c": fused})

    back = load_file(tmp_path / "x.safetensors")
    assert (back["a"].tolist(), back["b"].tolist(), back["c"].tolist()) == ([0, 1, 2], [3, 4, 5], [0, 1, 2, 3, 4, 5])


def test_folders_need_not_be_utf8(tmp_path: Path) -> None:
    """A file in a folder whose name is no UTF-8 is written and read, in both formats."""
    folder, tensors = tmp_path / os.fsdecode(b"caf\xe9 1"), {"a": torch.arange(3.0)}

    write_safetensors(folder / "a.safetensors", tensors)
    write_pickle(folder / "a.pth", tensors)

    for name in ("a.safetensors", "a.pth"):
        assert torch.equal(read_tensor_file(folder / name).tensors["a"], tensors["a"])


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_written_files_are_as_open_to_others_as_any(umask: int, tmp_path: Path) -> None:
    """Weights have the permissions of any other new file, so that a shared folder is one, whatever the format."""
    before = os.umask(umask)
    try:
        write_safetensors(tmp_path / "a.safetensors", {"a": torch.zeros(3)})
        write_pickle(tmp_path / "a.pth", {"a": torch.zeros(3)})
    finally:
        os.umask(before)

    assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [0o666 & ~umask] * 2


@pytest.mark.parametrize("write", [write_safetensors, write_pickle])
def test_failed_write_keeps_the_old_file(write: Any, tmp_path: Path) -> None:
    """Where the disk refuses more bytes, the error names the file, the old one stays and no rest is left."""
    path = tmp_path / "x"
    write(path, {"a": torch.ones(10)})
    old = path.read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))

    try:
        with pytest.raises(WeightsError, match=f"`{path}` cannot be written"):
            write(path, {"a": torch.ones(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)

    assert path.read_bytes() == old
    assert {entry.name for entry in tmp_path.iterdir()} == {"x"}


def test_the_same_weights_are_the_same_file(tmp_path: Path) -> None:
    """Whatever order the library writes its header in, the bytes of the file are the same each time."""
    tensors = {"b": torch.arange(6.0).view(2, 3), "a.weight": torch.ones(5, dtype=torch.float16)}

    contents = set()
    for number in range(12):
        write_safetensors(tmp_path / f"{number}.safetensors", tensors, {"licence": "none", "name": "caf\u00e9"})
        contents.add((tmp_path / f"{number}.safetensors").read_bytes())

    assert len(contents) == 1
    read = read_tensor_file(tmp_path / "0.safetensors")
    assert read.metadata is not None
    assert read.metadata["name"] == "caf\u00e9"
    assert all(torch.equal(read.tensors[key], tensor) for key, tensor in tensors.items())
