from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dino_extract.errors import StoreError
from dino_extract.store import StoreWarning, count_pending, disk, open_writer, verify_store
from tests.store.sample import LAYOUT, fill, table

REPOSITORY = Path(__file__).resolve().parents[2]
CALLS = ("pwrite", "pread", "fsync", "fdatasync", "replace")


def run_to_the_end(path: Path, num_rows: int = 30) -> None:
    """One run of the command."""
    with open_writer(path, table(num_rows), LAYOUT) as writer:
        fill(writer, limit=12)
        writer.flush()
        fill(writer, start=12)
        writer.finish()


class FailingCall:
    """A system call that fails once, at its `number`-th use."""

    def __init__(self, call: Callable[..., Any], number: int, code: int) -> None:
        self.call, self.number, self.code, self.uses = call, number, code, 0

    def __call__(self, *args: Any) -> Any:
        """Fail, or do it."""
        self.uses += 1
        if self.uses == self.number:
            raise OSError(self.code, os.strerror(self.code))
        return self.call(*args)


def error_of(call: Callable[[Path], None], path: Path) -> StoreError | None:
    """The error a call ends with, or None."""
    try:
        call(path)
    except StoreError as error:
        return error
    return None


def expected_bytes(folder: Path) -> bytes:
    """What an undisturbed run gives."""
    run_to_the_end(folder / "whole.h5")
    return (folder / "whole.h5").read_bytes()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT], ids=errno.errorcode.get)
@pytest.mark.parametrize("name", CALLS)
def test_each_call_failing_once_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int) -> None:
    """Whichever write, read, sync or rename fails: one sentence, an intact part or none, and the next run ends as if nothing had been."""
    whole = expected_bytes(tmp_path)
    path = tmp_path / "out.h5"
    for number in range(1, 1000):
        failing = FailingCall(getattr(os, name), number, code)
        monkeypatch.setattr(disk, name, failing)
        error = error_of(run_to_the_end, path)
        monkeypatch.undo()
        assert error is None or (error.message.startswith("cannot ") and error.hint)
        part = Path(f"{path}.part")
        assert not part.exists() or verify_store(part).is_intact

        with open_writer(path, table(30), LAYOUT) as writer:
            fill(writer)
            writer.finish()

        assert path.read_bytes() == whole
        assert sorted(os.listdir(tmp_path)) == ["out.h5", "whole.h5"]
        path.unlink()
        if failing.uses < number:
            assert number > 1, f"`{name}` was never called"
            return
    pytest.fail("the run never came to its end")


@pytest.mark.parametrize("name", ["pwrite", "fdatasync", "fsync"])
def test_interrupted_call_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A signal that interrupts a system call does not stop the run."""
    failing = FailingCall(getattr(os, name), 2, errno.EINTR)
    monkeypatch.setattr(disk, name, failing)

    run_to_the_end(tmp_path / "out.h5")

    assert failing.uses > 2
    assert verify_store(tmp_path / "out.h5").is_intact


def test_short_writes_and_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that takes and gives 7 bytes at a time gives the same file."""
    whole = expected_bytes(tmp_path)
    monkeypatch.setattr(disk, "pwrite", lambda fd, content, offset: os.pwrite(fd, content[:997], offset))
    monkeypatch.setattr(disk, "pread", lambda fd, nbytes, offset: os.pread(fd, min(nbytes, 997), offset))

    run_to_the_end(tmp_path / "out.h5")

    assert (tmp_path / "out.h5").read_bytes() == whole


def test_write_that_takes_nothing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write call that returns 0 does not loop for ever."""
    monkeypatch.setattr(disk, "pwrite", lambda fd, content, offset: 0)

    with pytest.raises(StoreError, match="input/output error"):
        run_to_the_end(tmp_path / "out.h5")


def test_file_system_that_cannot_reserve_is_used_anyway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where room cannot be reserved ahead, the run goes on without."""

    def unsupported(*_: int) -> int:
        ctypes.set_errno(errno.EOPNOTSUPP)
        return -1

    monkeypatch.setattr(disk, "fallocate", unsupported)

    run_to_the_end(tmp_path / "out.h5")

    assert verify_store(tmp_path / "out.h5").is_intact


def test_file_system_without_locks_is_used_with_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are no locks, the user is told to start one process only."""

    def no_locks(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)

    with pytest.warns(StoreWarning, match="has no locks"):
        run_to_the_end(tmp_path / "out.h5")

    assert os.listdir(tmp_path) == ["out.h5"]


def in_a_process(code: str, *args: str) -> str:
    """Run Python code in a process of its own, with the sample at hand; gives what it prints."""
    prelude = "import os, resource, sys\nfrom dino_extract.errors import StoreError\n"
    prelude += "from dino_extract.store import *\nfrom tests.store.sample import *\n"
    done = subprocess.run([sys.executable, "-c", prelude + code, *args], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


TRY = """
try:
    with open_writer(sys.argv[1], table(2000), LAYOUT) as writer:
        fill(writer, batch=50)
        writer.finish()
    print("finished")
except StoreError as error:
    print(error, "|", error.hint)
"""


def test_file_size_limit_stops_the_run_at_its_start(tmp_path: Path) -> None:
    """Under `ulimit -f`, the run is refused before any row, with the numbers, and leaves nothing behind."""
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"

    said = in_a_process(limit + TRY, str(tmp_path / "out.h5"))

    assert "the file size limit here is 100,000 bytes (100.0 kB) | raise the limit with `ulimit -f unlimited`" in said
    assert os.listdir(tmp_path) == []


def test_open_file_limit_is_explained(tmp_path: Path) -> None:
    """With no file descriptor left, the message says so and how to get more."""
    hoard = "hoard = []\ntry:\n    while True: hoard.append(os.open('/dev/null', 0))\nexcept OSError: pass\n"
    code = "resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))\n" + hoard + TRY

    said = in_a_process(code, str(tmp_path / "out.h5"))

    assert "too many files are open | raise the limit with `ulimit -n 4096`" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user, and root itself is refused nothing")
def test_read_only_folder_is_explained(tmp_path: Path) -> None:
    """In a folder that the user may not write, the message names the file and another way."""
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o755)
    for parent in [tmp_path, *tmp_path.parents[:2]]:
        parent.chmod(0o755)

    said = in_a_process("os.setuid(65534)\n" + TRY, str(folder / "out.h5"))

    assert "permission denied | choose another file with `-o`" in said


@pytest.mark.parametrize(("place", "reason"), [("none/out.h5", "no such file or folder"), ("file/out.h5", "not a folder")])
def test_impossible_folder_is_explained(tmp_path: Path, place: str, reason: str) -> None:
    """A folder that is missing, or is a file, is said to be so."""
    (tmp_path / "file").write_text("")

    with pytest.raises(StoreError, match=reason):
        run_to_the_end(tmp_path / place)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no right to mount a small disk: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_is_told_before_any_work(tiny_disk: Path) -> None:
    """A run that cannot fit is refused at its start with both numbers, and leaves nothing behind."""
    with pytest.raises(StoreError, match=r"out.h5` needs [\d,]+ bytes \(\d+.\d MB\), the disk has [\d,]+ bytes"):
        run_to_the_end(tiny_disk / "out.h5", num_rows=50_000)

    assert os.listdir(tiny_disk) == []


@pytest.mark.parametrize("options", [{}, {"overwrite": True}])
def test_update_that_does_not_fit_beside_the_old_file_is_refused(
    tiny_disk: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, bool]
) -> None:
    """Also where nothing can be reserved, and by the plan as by the run: the finished file stays until the new one is complete."""
    monkeypatch.setattr(disk, "fallocate", None)
    run_to_the_end(tiny_disk / "out.h5", num_rows=7000)
    before = (tiny_disk / "out.h5").read_bytes()

    for refused in (count_pending, open_writer):
        with pytest.raises(StoreError, match=r"needs [\d,]+ bytes \(1.\d MB\) beside the file that it replaces, the disk has"):
            refused(tiny_disk / "out.h5", table(7001), LAYOUT, **options)

    assert os.listdir(tiny_disk) == ["out.h5"]
    assert (tiny_disk / "out.h5").read_bytes() == before


def test_nothing_to_do_needs_no_space(tiny_disk: Path) -> None:
    """A complete file larger than what is free is not refused when no row is missing."""
    run_to_the_end(tiny_disk / "out.h5", num_rows=7000)

    with open_writer(tiny_disk / "out.h5", table(7000), LAYOUT) as writer:
        assert writer.up_to_date
    assert count_pending(tiny_disk / "out.h5", table(7000), LAYOUT) == (7000, 0)


def test_what_a_run_in_progress_holds_is_its_own(tiny_disk: Path) -> None:
    """A part that has taken most of the disk goes on; for other images it would need as much again while both are there."""
    with open_writer(tiny_disk / "out.h5", table(7000), LAYOUT) as writer:
        fill(writer, limit=10)

    assert count_pending(tiny_disk / "out.h5", table(7000), LAYOUT) == (7000, 6990)
    with pytest.raises(StoreError, match="the disk has"):
        count_pending(tiny_disk / "out.h5", table(7001), LAYOUT)
    run_to_the_end(tiny_disk / "out.h5", num_rows=7000)


def test_disk_that_fills_up_during_the_run(tiny_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without reservation a full disk stops the run in the middle; once there is room, the same command computes only the rest."""
    monkeypatch.setattr(disk, "fallocate", None)

    def beside_another_program() -> None:
        with open_writer(tiny_disk / "out.h5", table(4000), LAYOUT) as writer:
            fill(writer, limit=10)
            writer.flush()
            (tiny_disk / "ballast").write_bytes(bytes(1_300_000))
            fill(writer, start=10)
            writer.finish()

    with pytest.raises(StoreError, match="no space left on the disk") as caught:
        beside_another_program()
    (tiny_disk / "ballast").unlink()

    assert caught.value.hint is not None
    assert "the same command continues" in caught.value.hint
    assert verify_store(tiny_disk / "out.h5.part").is_intact
    with open_writer(tiny_disk / "out.h5", table(4000), LAYOUT) as writer:
        assert 0 < writer.reused < 4000
        fill(writer)
        writer.finish()
    assert verify_store(tiny_disk / "out.h5").is_intact


def test_space_is_compared_before_the_run(tmp_path: Path) -> None:
    """A plan larger than the disk is refused with the numbers."""
    disk.ensure_space(str(tmp_path / "out.h5"), 1000)
    disk.ensure_space(str(tmp_path / "out.h5"), 10**18, 10**18)

    with pytest.raises(StoreError, match=r"needs 1,000,000,000,000,000,000 bytes \(1000.0 PB\), the disk has"):
        disk.ensure_space(str(tmp_path / "out.h5"), 10**18)
