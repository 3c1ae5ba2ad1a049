from __future__ import annotations

import errno
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from dino_extract.errors import ConfigError, WeightsError
from dino_extract.files import FileLock, check_target, replace_atomically, sync_folder, writing
from dino_extract.store import open_writer
from tests.store.sample import LAYOUT, fill, table

REPOSITORY = Path(__file__).resolve().parents[1]


def write(path: Path, text: str, **options: object) -> None:
    """Write a text as a result."""
    with replace_atomically(path, "page", **options) as draft:  # type: ignore[arg-type]
        Path(draft).write_text(text)


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder, and its text."""
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def in_a_process(code: str, *args: str) -> int:
    """Run Python code in another process; gives how it ended."""
    prelude = "import os, pathlib, signal, sys, time\nfrom dino_extract.files import *\n"
    return subprocess.run([sys.executable, "-c", prelude + code, *args], cwd=REPOSITORY, check=False).returncode


def make_store(path: Path) -> Path:
    """A small file of embeddings."""
    with open_writer(path, table(3), LAYOUT) as writer:
        fill(writer)
        writer.finish()
    return path


def test_failed_write_is_one_sentence(tmp_path: Path) -> None:
    """The message has the kind of result, its path and the reason that the system gives."""
    path = tmp_path / "none/x.txt"

    with pytest.raises(ConfigError, match=r"^list `.*none/x.txt` cannot be written: No such file or directory$"), writing(path, "list"):
        path.write_text("")


def test_only_named_errors_are_failed_writes() -> None:
    """An exception is reported as a failed write if it is an OSError or the caller says so; others are our own mistakes."""
    with pytest.raises(KeyError), writing("x", "list"):
        raise KeyError
    with pytest.raises(ConfigError, match="list `x` cannot be written: unknown suffix"), writing("x", "list", also=(ValueError,)):
        raise ValueError("unknown suffix")


def test_error_class_and_hint_are_those_of_the_caller(tmp_path: Path) -> None:
    """A part of the package with its own class of errors raises that."""
    with (
        pytest.raises(WeightsError, match=r"^weights `.*` cannot be written") as caught,
        writing("x", "weights", error=WeightsError, hint="h"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.hint == "h"


@pytest.mark.parametrize("within", [writing, lambda path, what: replace_atomically(path, what, overwrite=True)])
def test_embeddings_are_never_replaced(tmp_path: Path, within: Callable[[Path, str], object]) -> None:
    """An embeddings file, finished or not or copied by h5py, is refused before the block begins, with `overwrite` too."""
    finished = make_store(tmp_path / "x.h5")
    with open_writer(tmp_path / "y.h5", table(3), LAYOUT):
        pass
    with h5py.File(finished, "r") as source, h5py.File(tmp_path / "copy.h5", "w") as copy:
        copy.attrs.update({f"note{i:02}": "n" * 9000 for i in range(20)})
        for name in source:
            source.copy(name, copy)
        copy.attrs.update(source.attrs)

    for path in (finished, tmp_path / "y.h5.part", tmp_path / "copy.h5"):
        with pytest.raises(ConfigError, match=r"list `.*` would replace a file of embeddings"), within(path, "list"):  # type: ignore[attr-defined]
            pytest.fail("it began")


def test_other_hdf5_files_are_replaced(tmp_path: Path) -> None:
    """An HDF5 file that is not ours is a result like any other."""
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a"] = np.zeros(3)

    write(tmp_path / "x.h5", "new", overwrite=True)

    assert contents(tmp_path) == {"x.h5": "new"}


def test_result_appears_when_it_is_whole(tmp_path: Path) -> None:
    """During the block and after an exception the earlier result is there; after the block the new one is, and nothing else."""
    path = tmp_path / "x.html"
    path.write_text("earlier")

    def fail() -> None:
        with replace_atomically(path, "page", overwrite=True) as draft:
            Path(draft).write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert contents(tmp_path) == {"x.html": "earlier"}
    with replace_atomically(path, "page", overwrite=True) as draft:
        Path(draft).write_text("whole")
        assert path.read_text() == "earlier"
    assert contents(tmp_path) == {"x.html": "whole"}
    assert os.listdir(tmp_path) == ["x.html"]


def write_while_another_writes(path: Path) -> None:
    """Write "slow", while the same result is written as "fast"."""
    with replace_atomically(path, "page") as draft:
        Path(draft).write_text("slow")
        write(path, "fast")


def test_existing_result_is_kept_without_overwrite(tmp_path: Path) -> None:
    """The error names the parameter that replaces it; a result that appears during the block is kept too."""
    write(tmp_path / "x.html", "first")

    with pytest.raises(ConfigError, match=r"^page `.*x.html` is already there$") as caught:
        write(tmp_path / "x.html", "second")
    assert caught.value.hint == "`overwrite=True` replaces it"
    with pytest.raises(ConfigError, match="is already there"):
        write_while_another_writes(tmp_path / "y.html")

    assert contents(tmp_path) == {"x.html": "first", "y.html": "fast"}


def test_link_stays_a_link(tmp_path: Path) -> None:
    """The target of a link is written, whether it exists already or not."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "x.html").symlink_to("disk/x.html")

    for text in ("first", "second"):
        write(tmp_path / "x.html", text, overwrite=True)

        assert (tmp_path / "x.html").is_symlink()
        assert contents(tmp_path / "disk") == {"x.html": text}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o444])
def test_mode_of_the_replaced_file_is_kept(tmp_path: Path, mode: int) -> None:
    """Whoever could read the result can read the new one."""
    path = tmp_path / "x.html"
    path.write_text("")
    path.chmod(mode)

    write(path, "new", overwrite=True)

    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_new_file_has_the_mode_of_the_umask(tmp_path: Path) -> None:
    """Also where a library writes a file that only its owner may read."""
    before = os.umask(0o027)
    try:
        with replace_atomically(tmp_path / "x", "page") as draft:
            os.close(os.open(draft, os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_owner_of_the_replaced_file_is_kept(tmp_path: Path) -> None:
    """A result that root writes again stays the user's."""
    (tmp_path / "x.html").write_text("")
    os.chown(tmp_path / "x.html", 1234, 4321)

    write(tmp_path / "x.html", "new", overwrite=True)

    info = (tmp_path / "x.html").stat()
    assert (info.st_uid, info.st_gid) == (1234, 4321)


def test_temporary_names_cannot_be_predicted(tmp_path: Path) -> None:
    """Each draft is in a new folder that other users cannot enter, so nobody can put a link in its place; the file name is kept."""
    drafts = set()
    for _ in range(20):
        with replace_atomically(tmp_path / "x.png", "image", overwrite=True) as draft:
            assert Path(draft).name == "x.png"
            assert stat.S_IMODE(Path(draft).parent.stat().st_mode) == 0o700
            Path(draft).write_text("")
        drafts.add(draft)

    assert len(drafts) == 20


def test_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    """A folder replaces an earlier one as a whole: no file of the earlier one stays."""
    for names in (["a", "b"], ["b", "c"]):
        with replace_atomically(tmp_path / "out", "folder", overwrite=True) as draft:
            Path(draft).mkdir()
            for name in names:
                (Path(draft) / name).write_text(name)
        assert contents(tmp_path) == {f"out/{name}": name for name in names}

    with pytest.raises(ConfigError, match=r"folder `.*out` is already there"), replace_atomically(tmp_path / "out", "folder"):
        pytest.fail("it began")


def test_devices_are_written_directly(tmp_path: Path) -> None:
    """A pipe is not replaced by a file: its reader gets the content."""
    os.mkfifo(tmp_path / "pipe")
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_text()))
    reader.start()

    write(tmp_path / "pipe", "content")
    reader.join()

    assert got == ["content"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


KILLED_IN_BLOCK = """
with replace_atomically(sys.argv[1], "page", overwrite=True) as draft:
    pathlib.Path(draft).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
KILLED_IN_SYNC = """
with replace_atomically(sys.argv[1], "page", overwrite=True, sync=lambda fd: os.kill(os.getpid(), signal.SIGKILL)) as draft:
    pathlib.Path(draft).write_text("whole, but not synced")
"""


@pytest.mark.parametrize("code", [KILLED_IN_BLOCK, KILLED_IN_SYNC], ids=["block", "sync"])
def test_killed_process_leaves_the_earlier_result(tmp_path: Path, code: str) -> None:
    """After SIGKILL the earlier result is whole, and the next write deletes what the dead process left."""
    (tmp_path / "x.html").write_text("earlier")

    assert in_a_process(code, str(tmp_path / "x.html")) == -signal.SIGKILL
    assert (tmp_path / "x.html").read_text() == "earlier"
    assert len(os.listdir(tmp_path)) == 2
    write(tmp_path / "x.html", "next", overwrite=True)

    assert os.listdir(tmp_path) == ["x.html"]
    assert (tmp_path / "x.html").read_text() == "next"


def test_drafts_of_living_processes_are_left_alone(tmp_path: Path) -> None:
    """Two processes may write the same result at once: the last one to end wins, and each ends well."""
    with replace_atomically(tmp_path / "x.html", "page", overwrite=True) as draft:
        Path(draft).write_text("slow")
        code = "with replace_atomically(sys.argv[1], 'page') as draft: pathlib.Path(draft).write_text('fast')"
        assert in_a_process(code, str(tmp_path / "x.html")) == 0
        assert (tmp_path / "x.html").read_text() == "fast"

    assert (tmp_path / "x.html").read_text() == "slow"
    assert os.listdir(tmp_path) == ["x.html"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT], ids=errno.errorcode.get)
@pytest.mark.parametrize("number", [1, 2])
def test_disk_error_is_one_sentence(tmp_path: Path, number: int, code: int) -> None:
    """Where the file or its folder cannot be synced, the error says why; no temporary file stays."""
    calls = []

    def failing(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == number:
            raise OSError(code, os.strerror(code))

    with pytest.raises(ConfigError, match=f"^page `.*x.html` cannot be written: {re.escape(os.strerror(code))}$"):
        write(tmp_path / "x.html", "new", sync=failing)

    assert os.listdir(tmp_path) == ([] if number == 1 else ["x.html"])


def test_folder_that_cannot_be_synced_is_no_error(tmp_path: Path) -> None:
    """Some network file systems refuse to sync a folder; the rename is done all the same."""

    def refuse(descriptor: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    sync_folder(tmp_path, refuse)


@pytest.mark.parametrize(("place", "reason"), [("none/x", "No such file"), ("file/x", "Not a directory"), ("folder", "Is a directory")])
def test_impossible_target_is_found_before_the_work(tmp_path: Path, place: str, reason: str) -> None:
    """`check_target` and the write itself give the same sentence."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()

    with pytest.raises(ConfigError, match=f"page `.*{place}` cannot be written: {reason}"):
        check_target(tmp_path / place, "page")
    with pytest.raises(ConfigError, match=f"page `.*{place}` cannot be written: {reason}"):
        write(tmp_path / place, "")


def test_check_before_the_work_refuses_existing_results(tmp_path: Path) -> None:
    """A result that would be replaced is refused before the work too, unless the user asks for it."""
    (tmp_path / "x").write_text("")

    with pytest.raises(ConfigError, match=r"page `.*x` is already there"):
        check_target(tmp_path / "x", "page")
    check_target(tmp_path / "x", "page", overwrite=True)
    check_target(tmp_path / "y", "page")
    check_target(None, "page")


def test_lock_is_free_after_its_holder_was_killed(tmp_path: Path) -> None:
    """SIGKILL releases the lock, although its file stays."""
    assert in_a_process("lock = FileLock(sys.argv[1])\nos.kill(os.getpid(), signal.SIGKILL)", str(tmp_path / "x.lock")) == -signal.SIGKILL
    assert os.listdir(tmp_path) == ["x.lock"]

    with FileLock(tmp_path / "x.lock") as lock:
        assert lock.is_held

    assert os.listdir(tmp_path) == []


def test_lock_keeps_other_processes_out(tmp_path: Path) -> None:
    """A second process gets an error while the lock is held, and the lock when it is released."""
    code = "try: FileLock(sys.argv[1])\nexcept BlockingIOError: sys.exit(9)"

    with FileLock(tmp_path / "x.lock"):
        assert in_a_process(code, str(tmp_path / "x.lock")) == 9
    assert in_a_process(code, str(tmp_path / "x.lock")) == 0


def test_lock_has_one_holder_at_a_time(tmp_path: Path) -> None:
    """Threads that take and release a lock at random never hold it together, although each release deletes the file."""
    inside, most, rounds = [0], [0], [0]

    def work() -> None:
        for _ in range(200):
            with FileLock(tmp_path / "x.lock", on_wait=lambda: None):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                rounds[0] += 1
                time.sleep(0)  # lets the others try
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (most[0], rounds[0]) == (1, 800)
    assert os.listdir(tmp_path) == []
