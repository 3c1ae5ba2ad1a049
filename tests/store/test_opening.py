from __future__ import annotations

import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from dino_extract.errors import SourceError, StoreBusyError, StoreError
from dino_extract.names import path_as_text
from dino_extract.status import Status
from dino_extract.store import Layout, RowDataset, StoreWarning, count_pending, open_store, open_writer, verify_store
from dino_extract.store.donor import Donor
from tests.store.sample import LAYOUT, RAGGED, fate, fill, table


def finish(path: Path, rows: object = 20, layout: Layout = LAYOUT, **options: bool) -> list[bytes]:
    """Bring a store to its end; gives the keys that had to be computed."""
    with open_writer(path, table(rows, is_ragged=layout.is_ragged), layout, **options) as writer:  # type: ignore[arg-type]
        computed = fill(writer, layout)
        writer.finish()
    return computed


def keys(*numbers: int) -> list[bytes]:
    """Keys of the sample, by number."""
    return [f"images/{number:05}.jpg".encode() for number in numbers]


def test_adding_images_computes_only_those(tmp_path: Path) -> None:
    """Ten images added to a thousand cost ten, and the file equals that of a run over all of them."""
    everything = table(1010).keys
    before = [key for number, key in enumerate(everything) if number % 101 != 50]
    finish(tmp_path / "out.h5", before)

    computed = finish(tmp_path / "out.h5", everything)

    assert len(computed) == 10
    finish(tmp_path / "whole.h5", everything)
    assert (tmp_path / "out.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_ragged_store_is_updated(tmp_path: Path) -> None:
    """Patch grids of kept images move along with their rows."""
    everything = table(60).keys
    finish(tmp_path / "out.h5", everything[::2], RAGGED)

    computed = finish(tmp_path / "out.h5", everything, RAGGED)

    assert computed == everything[1::2]
    finish(tmp_path / "whole.h5", everything, RAGGED)
    assert (tmp_path / "out.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_nothing_new_leaves_the_file_alone(tmp_path: Path) -> None:
    """A run with nothing to do does not touch the finished file, not even when a library version has changed."""
    finish(tmp_path / "out.h5")
    before = os.stat(tmp_path / "out.h5")

    newer = replace(LAYOUT, attrs={**LAYOUT.attrs, "versions": "newer"})
    with open_writer(tmp_path / "out.h5", table(20), newer) as writer:
        assert writer.up_to_date
        assert len(writer.pending) == 0
        writer.finish()

    after = os.stat(tmp_path / "out.h5")
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert os.listdir(tmp_path) == ["out.h5"]


def test_gone_images_are_kept(tmp_path: Path) -> None:
    """Rows of images that are no longer there stay in the file."""
    finish(tmp_path / "out.h5", keys(1, 2, 3))

    computed = finish(tmp_path / "out.h5", keys(2, 4))

    assert computed == keys(4)
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["paths"][:].tolist() == keys(1, 2, 3, 4)


def test_gone_images_are_looked_at_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which rows are usable is asked a few times and not once for each gone image: that would take hours for millions."""
    finish(tmp_path / "out.h5", 100)
    asked, usable = [], Donor.usable.fget
    monkeypatch.setattr(Donor, "usable", property(lambda donor: asked.append(donor) or usable(donor)))  # type: ignore[misc,func-returns-value]

    assert count_pending(tmp_path / "out.h5", table([b"new.jpg"]), LAYOUT) == (101, 1)
    assert len(asked) < 5


def test_prune_drops_gone_images(tmp_path: Path) -> None:
    """With `prune`, the file holds the images that are there, and nothing is computed for it."""
    finish(tmp_path / "out.h5", keys(1, 2, 3, 4))

    computed = finish(tmp_path / "out.h5", keys(2, 4), prune=True)

    assert computed == []
    finish(tmp_path / "whole.h5", keys(2, 4))
    assert (tmp_path / "out.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_changed_images_are_computed_again(tmp_path: Path) -> None:
    """An image with another size or another time of change is embedded again."""
    finish(tmp_path / "out.h5", 10)
    now = table(10)
    now.file_size[3] += 1
    now.file_mtime_ns[7] += 1

    with open_writer(tmp_path / "out.h5", now, LAYOUT) as writer:
        assert writer.pending.tolist() == [3, 7]
        fill(writer)
        writer.finish()

    with h5py.File(tmp_path / "out.h5") as file:
        np.testing.assert_array_equal(file["file_mtime_ns"][:], now.file_mtime_ns)


def test_failed_images_are_tried_again_only_when_asked(tmp_path: Path) -> None:
    """`retry_failed` makes failed rows pending, in a finished file and in an interrupted one; success clears their text."""
    failed = [row for row, key in enumerate(table(20).keys) if fate(key) != Status.OK]
    finish(tmp_path / "out.h5")
    assert failed

    assert finish(tmp_path / "out.h5") == []
    with open_writer(tmp_path / "out.h5", table(20), LAYOUT, retry_failed=True) as writer:
        assert writer.pending.tolist() == failed
        fill(writer, limit=1)
    with open_writer(tmp_path / "out.h5", table(20), LAYOUT, retry_failed=True) as writer:
        fill(writer, fate_of=lambda key: Status.OK)
        writer.finish()

    with open_store(tmp_path / "out.h5") as store:
        assert store.failures == []
    with h5py.File(tmp_path / "out.h5") as file:
        assert set(file["error"][:].tolist()) == {b""}


def test_vanished_images_are_always_tried_again(tmp_path: Path) -> None:
    """An image that was gone when it was to be read is pending as soon as it is back."""
    with open_writer(tmp_path / "out.h5", table(5), LAYOUT) as writer:
        fill(writer, fate_of=lambda key: Status.VANISHED if key == keys(2)[0] else Status.OK)
        writer.finish()

    with open_writer(tmp_path / "out.h5", table(5), LAYOUT) as writer:
        assert writer.pending.tolist() == [2]


def test_torn_rows_are_computed_again(tmp_path: Path) -> None:
    """A row of an interrupted run whose bytes do not match its checksum is pending again, and the file ends as if nothing had been."""
    finish(tmp_path / "whole.h5")
    with open_writer(tmp_path / "out.h5", table(20), LAYOUT) as writer:
        fill(writer, limit=15)
    with h5py.File(tmp_path / "out.h5.part", "r+") as file:
        file["features"][4, 2] += 1
        file["error"][11] = b"torn"

    with open_writer(tmp_path / "out.h5", table(20), LAYOUT) as writer:
        assert writer.pending.tolist() == [4, 11, 15, 16, 17, 18, 19]
        fill(writer)
        writer.finish()

    assert (tmp_path / "out.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_interrupted_run_goes_on_with_other_images(tmp_path: Path) -> None:
    """Rows of an interrupted run are kept when images have come and gone since, and its pending rows of gone images are dropped."""
    with open_writer(tmp_path / "out.h5", table(keys(1, 3, 5, 7)), LAYOUT) as writer:
        fill(writer, limit=2, batch=1)

    computed = finish(tmp_path / "out.h5", keys(0, 1, 2, 5))

    assert computed == keys(0, 2, 5)
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["paths"][:].tolist() == keys(0, 1, 2, 3, 5)


def test_interrupted_update_goes_on(tmp_path: Path) -> None:
    """An update that was interrupted keeps its own rows and those of the finished file, which stays readable meanwhile."""
    finish(tmp_path / "out.h5", 10)
    with open_writer(tmp_path / "out.h5", table(20), LAYOUT) as writer:
        fill(writer, limit=4)

    assert verify_store(tmp_path / "out.h5").num_rows == 10
    with open_writer(tmp_path / "out.h5", table(20), LAYOUT) as writer:
        assert writer.pending.tolist() == list(range(14, 20))
        fill(writer)
        writer.finish()

    finish(tmp_path / "whole.h5")
    assert (tmp_path / "out.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_damaged_row_of_a_finished_file_is_mended(tmp_path: Path) -> None:
    """When a finished file is updated, or failures are retried, a row that has rotten is computed again."""
    finish(tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5", "r+") as file:
        file["features"][4, 2] += 1

    with open_writer(tmp_path / "out.h5", table(21), LAYOUT) as writer:
        assert writer.pending.tolist() == [4, 20]


def test_damaged_row_of_a_gone_image_is_dropped_with_a_warning(tmp_path: Path) -> None:
    """A rotten row that nobody can compute again is left out, and the user is told which."""
    finish(tmp_path / "out.h5", keys(1, 2, 3))
    with h5py.File(tmp_path / "out.h5", "r+") as file:
        file["features"][1, 2] += 1

    with pytest.warns(StoreWarning, match=r"1 damaged rows of .* the first is `images/00002.jpg`"):
        finish(tmp_path / "out.h5", keys(1, 3, 4))

    with h5py.File(tmp_path / "out.h5") as file:
        assert file["paths"][:].tolist() == keys(1, 3, 4)


def test_other_settings_are_refused_with_every_difference(tmp_path: Path) -> None:
    """A file made with another model, preprocessing or shape is left alone, and the message lists all differences."""
    finish(tmp_path / "out.h5")
    before = (tmp_path / "out.h5").read_bytes()
    other = Layout(
        (RowDataset("features", (16,), "float32"),),
        {"model": "vitb14", "preprocess": '{"crop": 224, "resize": 512}'},
        ("model", "preprocess"),
    )

    with pytest.raises(StoreError) as caught:
        open_writer(tmp_path / "out.h5", table(20), other)

    assert caught.value.message.splitlines()[1:] == [
        "  model: the file has vits14, you asked for vitb14",
        "  preprocess.resize: the file has 256, you asked for 512",
    ]
    assert caught.value.hint == "`--overwrite` replaces it, `-o` chooses another file"
    assert (tmp_path / "out.h5").read_bytes() == before
    assert os.listdir(tmp_path) == ["out.h5"]


def test_overwrite_replaces_the_old_file_only_at_the_end(tmp_path: Path) -> None:
    """With `overwrite`, all rows are computed, and the old file stays whole until the new one is complete."""
    finish(tmp_path / "out.h5")
    before = (tmp_path / "out.h5").read_bytes()
    other = replace(LAYOUT, attrs={**LAYOUT.attrs, "model": "vitb14"})

    with open_writer(tmp_path / "out.h5", table(20), other, overwrite=True) as writer:
        assert len(writer.pending) == 20
        fill(writer, other, limit=10)
    assert (tmp_path / "out.h5").read_bytes() == before
    with open_writer(tmp_path / "out.h5", table(20), other, overwrite=True) as writer:
        assert writer.pending.tolist() == list(range(10, 20))
        fill(writer, other)
        writer.finish()

    with h5py.File(tmp_path / "out.h5") as file:
        assert file.attrs["model"] == "vitb14"


def test_overwrite_sets_aside_a_run_with_other_settings(tmp_path: Path) -> None:
    """An interrupted run with other settings is refused, and discarded only with `overwrite`."""
    other = replace(LAYOUT, attrs={**LAYOUT.attrs, "model": "vitb14"})
    with open_writer(tmp_path / "out.h5", table(20), LAYOUT) as writer:
        fill(writer, limit=10)

    with pytest.raises(StoreError, match=r"out.h5.part` was made with other settings"):
        open_writer(tmp_path / "out.h5", table(20), other)
    with open_writer(tmp_path / "out.h5", table(20), other, overwrite=True) as writer:
        assert len(writer.pending) == 20


@pytest.mark.parametrize("content", [b"", b"some text\n", b"\x89HDF\r\n\x1a\n" + bytes(500)])
def test_foreign_file_is_never_touched(tmp_path: Path, content: bytes) -> None:
    """A file that is not a store is refused, and replaced only with `overwrite`."""
    path = tmp_path / "out.h5"
    path.write_bytes(content)

    with pytest.raises(StoreError, match="is not an HDF5 file"):
        open_writer(path, table(5), LAYOUT)
    assert path.read_bytes() == content
    finish(path, 5, overwrite=True)

    assert verify_store(path).is_intact


def test_folder_is_refused(tmp_path: Path) -> None:
    """A folder in the place of the file is an error even with `overwrite`."""
    with pytest.raises(StoreError, match="is a folder"):
        open_writer(tmp_path, table(5), LAYOUT, overwrite=True)


def test_damaged_header_is_not_built_upon(tmp_path: Path) -> None:
    """A finished file whose paths have rotten is refused: nobody knows any more which row is which."""
    finish(tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5", "r+") as file:
        file["file_size"][2] += 1

    with pytest.raises(StoreError, match=r"header of .* is damaged"):
        open_writer(tmp_path / "out.h5", table(21), LAYOUT)


def test_leftovers_of_dead_runs_are_removed(tmp_path: Path) -> None:
    """Temporary files of a run that died while laying out the file go away, and other files stay."""
    for name in ("out.h5.part.new.123", "out.h5.part.new.me", "other.h5.part.new.123"):
        (tmp_path / name).write_bytes(b"x")

    finish(tmp_path / "out.h5", 5)

    assert sorted(os.listdir(tmp_path)) == ["other.h5.part.new.123", "out.h5", "out.h5.part.new.me"]


def hold_writer(path: Path, is_open: object, may_end: object) -> None:
    """Keep a writer open in another process."""
    with open_writer(path, table(5), LAYOUT):
        is_open.set()  # type: ignore[attr-defined]
        may_end.wait(30)  # type: ignore[attr-defined]


def test_second_writer_is_told_to_wait(tmp_path: Path) -> None:
    """While one process writes a file, another is refused with exit code 75, and can go on afterwards."""
    context = multiprocessing.get_context("spawn")
    is_open, may_end = context.Event(), context.Event()
    twin = context.Process(target=hold_writer, args=(tmp_path / "out.h5", is_open, may_end))
    twin.start()
    is_open.wait(30)

    with pytest.raises(StoreBusyError, match=r"another process is writing `.*out.h5`") as caught:
        open_writer(tmp_path / "out.h5", table(5), LAYOUT)
    may_end.set()
    twin.join()

    assert caught.value.exit_code == 75
    assert len(finish(tmp_path / "out.h5", 5)) == 5
    assert os.listdir(tmp_path) == ["out.h5"]


def test_lock_of_a_dead_process_does_not_block(tmp_path: Path) -> None:
    """A lock file that a killed run has left is no obstacle."""
    (tmp_path / "out.h5.lock").write_bytes(b"")

    finish(tmp_path / "out.h5", 5)

    assert os.listdir(tmp_path) == ["out.h5"]


def rooted(root: Path) -> Layout:
    """The sample's layout for images below a folder."""
    return replace(LAYOUT, attrs={**LAYOUT.attrs, "root": path_as_text(os.fsencode(root))})


def folder(path: Path) -> Path:
    """The folder, made if need be."""
    path.mkdir(parents=True, exist_ok=True)
    return path


def test_another_folder_is_refused(tmp_path: Path) -> None:
    """A file of one folder, finished or not, is not continued with the images of another, in a dry run neither; nothing is changed."""
    first, second = rooted(folder(tmp_path / "day1" / "images")), rooted(folder(tmp_path / "day2" / "images"))
    finish(tmp_path / "images.h5", 5, first)
    with open_writer(tmp_path / "half.h5", table(5), first) as writer:
        fill(writer, limit=2)
    before = (tmp_path / "images.h5").read_bytes()

    for name in ("images.h5", "half.h5"):
        for begin in (open_writer, count_pending):
            with pytest.raises(StoreError, match=r"are relative to `.*/day1/images`, those given to `.*/day2/images`") as caught:
                begin(tmp_path / name, table(5), second)
    assert "`dino-extract join` makes one file of the two" in str(caught.value.hint)
    assert (tmp_path / "images.h5").read_bytes() == before


def test_overwrite_takes_nothing_from_another_folder(tmp_path: Path) -> None:
    """An interrupted run over another folder gives no row to one that overwrites."""
    with open_writer(tmp_path / "out.h5", table(5), rooted(folder(tmp_path / "one"))) as writer:
        fill(writer, limit=2)

    assert count_pending(tmp_path / "out.h5", table(5), rooted(folder(tmp_path / "two")), overwrite=True) == (5, 5)
    assert len(finish(tmp_path / "out.h5", 5, rooted(tmp_path / "two"), overwrite=True)) == 5


def test_moved_folder_keeps_its_rows_and_its_new_place_is_noted(tmp_path: Path) -> None:
    """When the folder has been moved nothing is computed, and the file equals one that was made of the folder where it is now."""
    finish(tmp_path / "out.h5", 5, rooted(folder(tmp_path / "old")))
    (tmp_path / "old").rename(tmp_path / "new")

    computed = finish(tmp_path / "out.h5", 5, rooted(tmp_path / "new"))

    assert computed == []
    finish(tmp_path / "whole.h5", 5, rooted(tmp_path / "new"))
    assert (tmp_path / "out.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_same_folder_by_another_name_leaves_the_file_alone(tmp_path: Path) -> None:
    """A link to the folder is the folder."""
    finish(tmp_path / "out.h5", 5, rooted(folder(tmp_path / "photos")))
    (tmp_path / "link").symlink_to(tmp_path / "photos")

    with open_writer(tmp_path / "out.h5", table(5), rooted(tmp_path / "link")) as writer:
        assert writer.up_to_date


def test_absolute_paths_are_the_same_from_any_folder(tmp_path: Path) -> None:
    """Sources that were given by absolute paths may be given again from another working directory."""
    absolute = [b"/photos/" + key for key in keys(1, 2)]
    finish(tmp_path / "out.h5", absolute, rooted(folder(tmp_path / "one")))

    with open_writer(tmp_path / "out.h5", table(absolute), rooted(folder(tmp_path / "two"))) as writer:
        assert writer.up_to_date


def test_vanished_images_do_not_stay(tmp_path: Path) -> None:
    """A row whose image was gone when it was to be read, and is not listed any more, is dropped; other gone rows stay."""
    with open_writer(tmp_path / "out.h5", table(keys(1, 2, 3)), LAYOUT) as writer:
        fill(writer, fate_of=lambda key: Status.VANISHED if key == keys(2)[0] else Status.OK)
        writer.finish()

    assert finish(tmp_path / "out.h5", keys(1)) == []

    with open_store(tmp_path / "out.h5") as store:
        assert store.paths == [key.decode() for key in keys(1, 3)]
        assert store.failures == []


def test_prune_needs_to_have_looked_everywhere(tmp_path: Path) -> None:
    """Rows below what could not be read are not dropped, in a dry run neither; those of other gone images are."""
    finish(tmp_path / "out.h5", [b"private/a.jpg", b"there.jpg", b"was.jpg"])
    private, other = ({start: "folder `private`"} for start in (b"private/", b"private2/"))

    for begin in (open_writer, count_pending):
        with pytest.raises(SourceError, match=r"drop 1 rows whose images may still be there, because .* read: folder `private`"):
            begin(tmp_path / "out.h5", replace(table([b"there.jpg"]), unread=private), LAYOUT, prune=True)
    with open_writer(tmp_path / "out.h5", replace(table([b"there.jpg"]), unread=other), LAYOUT, prune=True) as writer:
        assert writer.keys == [b"there.jpg"]
