"""Random histories of runs, compared with a dictionary that has no files, batches or checksums."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dino_extract.errors import StoreError
from dino_extract.status import Status
from dino_extract.store import Layout, RowDataset, RowTable, open_store, open_writer, verify_store

FATES = [Status.OK, Status.UNREADABLE, Status.VANISHED]


@dataclass(frozen=True)
class Run:
    """One call of the command."""

    images: dict[int, tuple[int, Status]]  # key -> time of change, fate
    model: str
    limit: int | None  # rows computed before the run is interrupted
    overwrite: bool
    retry_failed: bool
    prune: bool


@dataclass(frozen=True)
class Row:
    """A row as the model of the store remembers it."""

    mtime_ns: int
    status: Status
    run: int  # number of the run that computed it


@dataclass
class Memory:
    """What a store should hold: rows by key, None where not computed."""

    model: str
    rows: dict[int, Row | None]


RUNS = st.builds(
    Run,
    images=st.dictionaries(st.integers(0, 6), st.tuples(st.integers(1, 2), st.sampled_from(FATES)), min_size=1),
    model=st.sampled_from(["a", "a", "a", "b"]),
    limit=st.one_of(st.none(), st.integers(0, 4)),
    overwrite=st.sampled_from([False, False, True]),
    retry_failed=st.booleans(),
    prune=st.booleans(),
)


class Model:
    """The dictionary that a store is compared with."""

    def __init__(self) -> None:
        self.finished: Memory | None = None
        self.part: Memory | None = None

    def begin(self, run: Run) -> tuple[dict[int, Row | None], bool] | None:
        """The rows the file will have, and whether nothing is to do; None if the run is refused."""
        part = self.part
        if run.overwrite and part and part.model != run.model:
            part = None
        donors = [donor for donor in (part, None if run.overwrite else self.finished) if donor]
        if any(donor.model != run.model for donor in donors):
            return None
        rows: dict[int, Row | None] = {}
        for key, (mtime_ns, _) in run.images.items():
            held = [donor.rows.get(key) for donor in donors]
            rows[key] = next((row for row in held if row and self.may_keep(row, mtime_ns, run)), None)
        for donor in [] if run.prune else donors:
            for key, row in donor.rows.items():
                if row and key not in rows and row.status != Status.VANISHED:
                    rows[key] = row
        is_done = not part and not run.overwrite and self.finished is not None and rows == self.finished.rows
        return rows, is_done

    @staticmethod
    def may_keep(row: Row, mtime_ns: int, run: Run) -> bool:
        """Whether a row of earlier work need not be computed again."""
        return row.mtime_ns == mtime_ns and (row.status == Status.OK or (row.status != Status.VANISHED and not run.retry_failed))


def key_name(key: int) -> bytes:
    """The file name of an image."""
    return b"%d" % key


def perform(path: Path, run: Run, number: int, model: Model) -> None:
    """Run the command on the real store and on the model, and compare."""
    layout = Layout((RowDataset("features", (2,), "float32"),), {"model": run.model}, ("model",))
    keys = sorted(run.images)
    table = RowTable(
        [key_name(key) for key in keys], np.zeros(len(keys), np.int64), np.array([run.images[key][0] for key in keys], np.int64)
    )
    flags = {"overwrite": run.overwrite, "retry_failed": run.retry_failed, "prune": run.prune}
    begun = model.begin(run)
    if begun is None:
        with pytest.raises(StoreError, match="was made with other settings"):
            open_writer(path, table, layout, **flags)
        return
    rows, is_done = begun
    with open_writer(path, table, layout, **flags) as writer:
        assert writer.up_to_date == is_done
        pending = [int(writer.keys[row]) for row in writer.pending]
        assert pending == sorted(key for key, row in rows.items() if row is None)
        for position, key in list(enumerate(pending))[: run.limit]:
            mtime_ns, fate = run.images[key]
            features = {"features": np.full((1, 2), number, np.float32)}
            writer.write(
                writer.pending[[position]],
                features,
                image_size=np.ones((1, 2), np.int32),
                status=[fate],
                errors=["" if fate == 1 else "no"],
            )
            rows[key] = Row(mtime_ns, fate, number)
        memory = Memory(run.model, dict(sorted(rows.items())))
        if any(row is None for row in rows.values()):
            model.part = memory
        else:
            writer.finish()
            model.finished, model.part = memory, None


def check(path: Path, memory: Memory | None) -> None:
    """Compare a file with what the model remembers, through plain h5py."""
    assert path.exists() == (memory is not None)
    if memory is None:
        return
    assert verify_store(path).is_intact
    with h5py.File(path, "r") as file:
        assert [int(key) for key in file["paths"][:]] == sorted(memory.rows)
        for position, (_, row) in enumerate(sorted(memory.rows.items())):
            assert bool(file["row_crc"][position]) == (row is not None)
            if row is not None:
                assert (file["status"][position], file["file_mtime_ns"][position]) == (row.status, row.mtime_ns)
                wanted = np.full(2, row.run if row.status == Status.OK else np.nan, np.float32)
                np.testing.assert_array_equal(file["features"][position], wanted)
                assert file["error"][position] == (b"" if row.status == Status.OK else b"no")
    with open_store(path) as store:
        assert store.paths == [str(key) for key, row in sorted(memory.rows.items()) if row and row.status == Status.OK]


def check_history(runs: list[Run]) -> None:
    """Perform the runs one after the other on a store and on the model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.h5"
        model = Model()
        for number, run in enumerate(runs, start=1):
            perform(path, run, number, model)
            check(path, model.finished)
            check(Path(f"{path}.part"), model.part)


HISTORIES = st.lists(RUNS, min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(HISTORIES)
def test_any_history_of_runs_gives_what_a_dictionary_gives(runs: list[Run]) -> None:
    """First runs, interruptions, updates, retries, prunes and overwrites in any order keep exactly the rows they should."""
    check_history(runs)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@given(HISTORIES)
def test_many_histories_of_runs(runs: list[Run]) -> None:
    """The same, for a long time."""
    check_history(runs)
