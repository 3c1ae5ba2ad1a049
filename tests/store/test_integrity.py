from __future__ import annotations

import multiprocessing
import random
from multiprocessing.connection import Connection
from pathlib import Path

import h5py
import pytest

from dino_extract.errors import StoreError
from dino_extract.store import Layout, guard, header, join_stores, open_store, open_writer, verify_store
from tests.store.sample import LAYOUT, RAGGED, fill, table


@pytest.fixture(scope="module", params=["even", "ragged"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a finished store of 40 rows."""
    layout: Layout = LAYOUT if request.param == "even" else RAGGED
    path = tmp_path_factory.mktemp("store") / "out.h5"
    with open_writer(path, table(40, is_ragged=layout.is_ragged), layout) as writer:
        fill(writer, layout)
        writer.finish()
    return path.read_bytes()


def owners(path: Path) -> list[int | None]:
    """The row that owns each byte of the file, found with plain h5py; None outside the rows."""
    owner: list[int | None] = [None] * path.stat().st_size
    with h5py.File(path, "r") as file:
        for name in ("features", "layers/9/patch_features", "patch_features", "image_size", "status", "error", "row_crc"):
            if name not in file:
                continue
            dataset, num_rows = file[name], len(file["paths"])
            is_ragged = name == "patch_features" and "patch_offsets" in file
            starts = file["patch_offsets"][:].tolist() if is_ragged else list(range(num_rows + 1))
            item_nbytes = dataset.id.get_storage_size() // starts[-1]
            for row in range(num_rows):
                first, last = (dataset.id.get_offset() + starts[i] * item_nbytes for i in (row, row + 1))
                owner[first:last] = [row] * (last - first)
    return owner


def check_flip(damaged: Path, finished: bytes, position: int, bit: int, row: int | None) -> None:
    """Flip one bit, and assert that `verify_store` finds it, in the right place."""
    content = bytearray(finished)
    content[position] ^= 1 << bit
    damaged.write_bytes(content)

    report = verify_store(damaged, header_limit_s=None)

    assert not report.is_intact, f"bit {bit} of byte {position} went unnoticed"
    if row is None:
        assert report.header_damage, f"byte {position} is outside the rows"
    else:
        assert report.header_damage is None, f"byte {position} belongs to row {row}"
        assert report.damaged_rows == ((row, f"images/{row:05}.jpg"),)


def test_intact_file_passes(tmp_path: Path, finished: bytes) -> None:
    """A file as it was written has nothing to report."""
    (tmp_path / "out.h5").write_bytes(finished)

    report = verify_store(tmp_path / "out.h5")

    assert report.is_intact
    assert (report.num_rows, report.num_uncommitted) == (40, 0)


def test_flipped_bits_are_found_and_located(tmp_path: Path, finished: bytes) -> None:
    """Any one flipped bit is found: in a row, the row is named; elsewhere, the header is."""
    rng = random.Random(0)
    (tmp_path / "intact.h5").write_bytes(finished)
    owner = owners(tmp_path / "intact.h5")

    for _ in range(200):
        position = rng.randrange(len(finished))
        check_flip(tmp_path / "damaged.h5", finished, position, rng.randrange(8), owner[position])


def check_flips(progress: Connection, damaged: Path, finished: bytes, owner: list[int | None], first: int) -> None:
    """Check a flipped bit in each byte from `first` on, one after the other; each byte is announced before it is flipped."""
    for position in range(first, len(finished)):
        progress.send(position)
        check_flip(damaged, finished, position, random.Random(position).randrange(8), owner[position])


@pytest.mark.slow
def test_every_byte_is_covered(tmp_path: Path, finished: bytes) -> None:
    """One flipped bit in each byte of the file, one after the other, is always found, or never comes back from HDF5."""
    (tmp_path / "intact.h5").write_bytes(finished)
    owner, position = owners(tmp_path / "intact.h5"), 0

    while position < len(finished):
        progress, sender = multiprocessing.Pipe(duplex=False)
        check = multiprocessing.get_context("fork").Process(
            target=check_flips, args=(sender, tmp_path / "damaged.h5", finished, owner, position)
        )
        check.start()
        sender.close()
        try:
            while progress.poll(5):
                position = progress.recv()
        except EOFError:
            check.join()
            assert check.exitcode == 0, f"byte {position}"
            break
        check.kill()
        check.join()
        assert finished.find(b"GCOL") <= position < finished.find(b"GCOL") + 4096, "only the heap of texts may lead HDF5 astray"
        position += 1


@pytest.fixture
def endless(tmp_path: Path, finished: bytes) -> Path:
    """A file whose header has a text of a wrong length, which makes HDF5 2.0 loop for ever."""
    content = bytearray(finished)
    first_length = content.find(b"GCOL") + 24  # 16 bytes before the first object of the heap, 8 bytes before its length
    content[first_length + 1] ^= 1
    path = tmp_path / "damaged.h5"
    path.write_bytes(content)
    return path


def test_header_that_hdf5_never_comes_back_from_is_damage(endless: Path) -> None:
    """`verify_store` ends where HDF5 does not, and says so."""
    assert "did not come back within 2 s" in str(verify_store(endless, header_limit_s=2).header_damage)


def test_file_that_hdf5_never_comes_back_from_is_refused(endless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading, continuing and joining such a file end with an error, too; overwriting replaces it."""
    monkeypatch.setattr(header.read_header, "__kwdefaults__", {"limit_s": 2})

    for use in (open_store, lambda path: open_writer(path, table(40), LAYOUT), lambda path: join_stores([path], "joined.h5")):
        with pytest.raises(StoreError, match="is damaged: HDF5 did not come back within 2 s"):
            use(endless)
    open_writer(endless, table(40), LAYOUT, overwrite=True).close()


def test_crash_of_the_reader_of_a_damaged_file_is_damage(endless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies of a signal while it reads the attributes is reported, not inherited."""
    monkeypatch.setattr(guard, "READER_PROGRAM", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")

    assert "died of signal 11" in str(verify_store(endless).header_damage)


@pytest.mark.parametrize(
    "change", [lambda content: content + b"\0", lambda content: content[:-1], lambda content: content[: len(content) // 2]]
)
def test_other_size_is_damage(tmp_path: Path, finished: bytes, change: object) -> None:
    """A file that has lost or gained bytes at its end is not intact."""
    (tmp_path / "out.h5").write_bytes(change(finished))  # type: ignore[operator]

    assert verify_store(tmp_path / "out.h5").header_damage


def test_interrupted_run_reports_missing_rows(tmp_path: Path) -> None:
    """A part file is intact, with the rows that are not written yet counted."""
    with open_writer(tmp_path / "out.h5", table(20), LAYOUT) as writer:
        fill(writer, limit=8)

    report = verify_store(tmp_path / "out.h5.part")

    assert report.is_intact
    assert report.num_uncommitted == 12


def test_file_without_checksums_is_refused(tmp_path: Path) -> None:
    """An HDF5 file of somebody else is an error, not a damaged store."""
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["features"] = [1.0]

    with pytest.raises(StoreError, match="did not make it"):
        verify_store(tmp_path / "other.h5")


@pytest.mark.parametrize("content", [b"\xff\xd8\xff\xe0 a picture", b"\x89PNG\r\n\x1a\n", b""])
def test_file_that_is_no_hdf5_is_refused(tmp_path: Path, content: bytes) -> None:
    """A picture or an empty file is an error that says so, not a damaged store."""
    (tmp_path / "picture.jpg").write_bytes(content)

    with pytest.raises(StoreError, match="is not an HDF5 file"):
        verify_store(tmp_path / "picture.jpg")


def test_a_flipped_bit_in_the_first_bytes_is_damage(tmp_path: Path, finished: bytes) -> None:
    """A store of which a bit of HDF5's signature flipped is a damaged store, not some other file."""
    for position in range(8):
        check_flip(tmp_path / "damaged.h5", finished, position, position, None)


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    """A path that leads nowhere is said to lead nowhere."""
    with pytest.raises(StoreError, match="there is no file"):
        verify_store(tmp_path / "none.h5")
