"""Batches come in row order, memory is bounded, and a child that dies costs one image at most."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino_extract.errors import DecodeError
from dino_extract.images.decode import decode_image
from dino_extract.images.decoder import parent
from dino_extract.images.finding import find_images
from dino_extract.images.loader import DecodedBatch, Loader, default_workers, scan_image_sizes
from dino_extract.images.manifest import Manifest
from dino_extract.images.preprocess import Preprocess, preprocess
from dino_extract.status import Status
from tests.decoders import child_that_dies

OPTIONS = Preprocess(height=28, width=28)
REPOSITORY = Path(__file__).resolve().parents[2]


def make_folder(folder: Path, count: int = 23, side: int = 60) -> Manifest:
    """A folder of JPEGs of noise in different sizes."""
    random = np.random.default_rng(count)
    for number in range(count):
        noise = random.integers(0, 256, (side + number, side, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number:03d}.jpg")
    return find_images([str(folder)])


def load(manifest: Manifest, options: Preprocess = OPTIONS, **arguments: object) -> list[DecodedBatch]:
    """All batches of all rows."""
    with Loader(manifest, range(len(manifest)), options, **{"batch": 5, "workers": 2, **arguments}) as loader:  # type: ignore[arg-type]
        return list(loader)


def children() -> set[int]:
    """The running decoders of this process."""
    pids: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the thread has just ended
            pids |= {int(pid) for pid in (task / "children").read_text().split()}
    return {pid for pid in pids if b"images.decoder.child" in Path(f"/proc/{pid}/cmdline").read_bytes()}


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    """Before each test there is no child and no decoder thread of an earlier one."""
    assert children() == set()
    assert [thread for thread in threading.enumerate() if thread.name.startswith("decoder")] == []


def test_rows_come_in_order_in_batches_of_fixed_size(tmp_path: Path) -> None:
    """Batches hold consecutive rows, and all but the last have the same number."""
    batches = load(make_folder(tmp_path))

    assert [len(batch.rows) for batch in batches] == [5, 5, 5, 5, 3]
    assert np.concatenate([batch.rows for batch in batches]).tolist() == list(range(23))


def test_pixels_are_those_of_decoding_here(tmp_path: Path) -> None:
    """Each row holds the pixels of its own image, contiguous, with the size of the original."""
    manifest = make_folder(tmp_path)

    batches = load(manifest)

    expected = [preprocess(decode_image((tmp_path / os.fsdecode(key)).read_bytes()), OPTIONS) for key in manifest.keys]
    assert np.array_equal(np.concatenate([batch.pixels for batch in batches]), expected)
    assert all(batch.pixels.flags.c_contiguous for batch in batches if isinstance(batch.pixels, np.ndarray))
    assert np.concatenate([batch.image_size for batch in batches]).tolist() == [[60 + number, 60] for number in range(23)]


@pytest.mark.parametrize("arguments", [{"workers": 1}, {"workers": 5}, {"batch": 1}, {"batch": 64}, {"prefetch_batches": 1}])
def test_pixels_do_not_depend_on_workers_and_batches(tmp_path: Path, arguments: dict[str, int]) -> None:
    """Every row has the same pixels for any number of workers and any batch size."""
    manifest = make_folder(tmp_path)

    one, other = load(manifest), load(manifest, **arguments)

    assert np.array_equal(np.concatenate([batch.pixels for batch in one]), np.concatenate([batch.pixels for batch in other]))


def test_chosen_rows_are_loaded_in_their_order(tmp_path: Path) -> None:
    """Any selection of rows comes in the order that was asked for."""
    manifest = make_folder(tmp_path)

    with Loader(manifest, [7, 3, 19], OPTIONS, batch=2, workers=1) as loader:
        rows = [batch.rows.tolist() for batch in loader]

    assert rows == [[7, 3], [19]]


def test_no_rows_give_no_batches(tmp_path: Path) -> None:
    """Without rows the loader ends at once."""
    with Loader(make_folder(tmp_path, 1), [], OPTIONS) as loader:
        assert list(loader) == []


def test_failed_images_have_zero_pixels_and_say_why(tmp_path: Path) -> None:
    """A text file, a deleted file and a folder in its place fail in their own rows. The other rows are OK."""
    manifest = make_folder(tmp_path, 6)
    (tmp_path / "001.jpg").write_text("hello")
    (tmp_path / "002.jpg").unlink()
    (tmp_path / "004.jpg").unlink()
    (tmp_path / "004.jpg").mkdir()

    (batch,) = load(manifest, batch=6)

    assert batch.status.tolist() == [Status.OK, Status.UNREADABLE, Status.VANISHED, Status.OK, Status.UNREADABLE, Status.OK]
    assert batch.errors == ["", "decode: not an image in a known format", "read: the file has gone", "", "read: not a regular file", ""]
    assert [bool(batch.pixels[row].any()) for row in range(6)] == [True, False, False, True, False, True]


def test_native_gives_a_list_of_images(tmp_path: Path) -> None:
    """With `native` every image has its own shape, and a failed one is empty."""
    manifest = make_folder(tmp_path, 3, side=40)
    Image.new("RGB", (100, 40)).save(tmp_path / "000.jpg")
    (tmp_path / "001.jpg").write_bytes(b"")

    (batch,) = load(manifest, Preprocess(policy="native", height=28, width=28))

    assert [picture.shape for picture in batch.pixels] == [(28, 70, 3), (0, 0, 3), (28, 28, 3)]


def test_decoded_images_come_as_a_list(tmp_path: Path) -> None:
    """If the decoders do not resize, small images come as decoded, large ones resized, failed ones empty, all in the given memory."""
    manifest = make_folder(tmp_path, 3)
    Image.new("RGB", (1100, 1000)).save(tmp_path / "001.jpg")
    (tmp_path / "002.jpg").write_bytes(b"")
    given: list[np.ndarray] = []

    def allocate(shape: tuple[int, ...]) -> np.ndarray:
        given.append(np.empty(shape, np.uint8))
        return given[-1]

    (batch,) = load(manifest, resizes=False, allocate=allocate, workers=1)

    assert [picture.shape for picture in batch.pixels] == [(60, 60, 3), (28, 28, 3), (0, 0, 3)]
    assert batch.is_resized.tolist() == [False, True, True]
    assert np.array_equal(batch.pixels[0], decode_image((tmp_path / "000.jpg").read_bytes()))
    assert [picture is memory for picture, memory in zip(batch.pixels, given, strict=False)] == [True, True]


def test_sizes_are_scanned_without_pixels(tmp_path: Path) -> None:
    """The scan of headers gives upright sizes, and zeros where an image cannot be read."""
    manifest = make_folder(tmp_path, 3)
    (tmp_path / "001.jpg").write_bytes(b"")

    assert scan_image_sizes(manifest, OPTIONS, workers=1).tolist() == [[60, 60], [0, 0], [62, 60]]


def test_decoding_runs_ahead_by_so_many_batches_and_no_further(tmp_path: Path) -> None:
    """While the consumer works, as many batches as allowed are prepared, and not one image more."""
    manifest = make_folder(tmp_path)

    with Loader(manifest, range(23), OPTIONS, batch=2, workers=2, prefetch_batches=3) as loader:
        batches = iter(loader)
        next(batches)
        end = time.monotonic() + 10
        while loader.stats.num_images < 8 and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.2)

        assert loader.stats.num_images == 8


def test_decoder_killed_from_outside_costs_nothing(tmp_path: Path) -> None:
    """SIGKILL to the children in the middle of a run changes no pixel and no status."""
    manifest = make_folder(tmp_path, 60)
    undisturbed = load(manifest)

    batches, num_killed = [], 0
    with Loader(manifest, range(60), OPTIONS, batch=5, workers=2, prefetch_batches=1) as loader:
        for batch in loader:
            batches.append(batch)
            if len(batches) in (2, 5):
                for pid in children():
                    os.kill(pid, signal.SIGKILL)
                    num_killed += 1

    assert num_killed >= 2
    assert np.concatenate([batch.status for batch in batches]).tolist() == [Status.OK] * 60
    assert np.array_equal(np.concatenate([batch.pixels for batch in batches]), np.concatenate([batch.pixels for batch in undisturbed]))


def test_stopped_decoder_costs_exactly_its_image(tmp_path: Path) -> None:
    """A decoder that hangs costs the one image that it was working on, and a new decoder goes on."""
    manifest = make_folder(tmp_path, 30)

    batches = []
    with Loader(manifest, range(30), OPTIONS, batch=3, workers=1, prefetch_batches=1, timeout_s=1.5) as loader:
        for batch in loader:
            batches.append(batch)
            if len(batches) == 3:
                (pid,) = children()
                os.kill(pid, signal.SIGSTOP)

    status = np.concatenate([batch.status for batch in batches])
    errors = [error for batch in batches for error in batch.errors]
    assert np.count_nonzero(status == Status.CRASHED) == 1
    assert np.count_nonzero(status == Status.OK) == 29
    assert errors[int(np.argmax(status == Status.CRASHED))] == "decode: timed out after 1.5 s"


@pytest.mark.parametrize(
    ("ending", "text"),
    [("os.kill(os.getpid(), 11)", "decode: decoder crashed (signal 11)"), ("os._exit(3)", "decode: decoder ended with code 3")],
)
def test_image_that_crashes_its_decoder_twice_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, text: str) -> None:
    """An image whose decoder always dies is CRASHED, with the way it ended. Every other image is OK."""
    manifest = make_folder(tmp_path, 12)
    monkeypatch.setattr(parent, "CHILD_PROGRAM", child_that_dies(ending, when="ref.key == b'007.jpg'"))

    (batch,) = load(manifest, batch=12)

    assert batch.status.tolist() == [Status.OK] * 7 + [Status.CRASHED] + [Status.OK] * 4
    assert batch.errors[7] == text
    assert not batch.pixels[7].any()


def test_decoders_that_cannot_start_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When no decoder can start the loader raises instead of marking every image."""
    manifest = make_folder(tmp_path, 3)
    monkeypatch.setattr(parent, "CHILD_PROGRAM", "raise ImportError('broken installation')")

    with pytest.raises(DecodeError, match="does not start: ImportError: broken installation"):
        load(manifest)


def test_leaving_early_ends_everything_at_once(tmp_path: Path) -> None:
    """An exception in the consumer's loop kills the children within a second, even one that hangs."""
    manifest = make_folder(tmp_path)

    def consume() -> None:
        with Loader(manifest, range(23), OPTIONS, batch=2, workers=2, prefetch_batches=1) as loader:
            for _ in loader:
                for pid in children():
                    os.kill(pid, signal.SIGSTOP)
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()

    assert children() == set()
    assert [thread for thread in threading.enumerate() if thread.name.startswith("decoder")] == []


def test_no_descriptor_leaks(tmp_path: Path) -> None:
    """After many loaders, finished and abandoned, no file descriptor is left open."""
    manifest = make_folder(tmp_path, 6)
    load(manifest)
    before = len(os.listdir("/proc/self/fd"))

    for _ in range(3):
        load(manifest)
        with Loader(manifest, range(6), OPTIONS, batch=1, workers=2) as loader:
            next(iter(loader))

    assert len(os.listdir("/proc/self/fd")) == before


def test_closed_loader_gives_nothing(tmp_path: Path) -> None:
    """Iterating over a closed loader is an error."""
    loader = Loader(make_folder(tmp_path, 2), [0, 1], OPTIONS)
    loader.close()

    with pytest.raises(ValueError, match="closed"):
        next(iter(loader))


def test_statistics_account_for_the_run(tmp_path: Path) -> None:
    """The statistics hold the number of images and failures, and the time of each stage."""
    manifest = make_folder(tmp_path, 10)
    (tmp_path / "003.jpg").write_bytes(b"")

    with Loader(manifest, range(10), OPTIONS, batch=5, workers=1) as loader:
        list(loader)

    assert (loader.stats.num_images, loader.stats.num_failed) == (10, 1)
    assert loader.stats.decode_s > loader.stats.read_s > 0
    assert loader.stats.wait_s > 0


def test_script_without_main_guard_runs_once(tmp_path: Path) -> None:
    """The children do not run the user's script again, even if it loads images at its top level."""
    make_folder(tmp_path, 4)
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nprint('started')\n"
        "from dino_extract.images.finding import find_images\nfrom dino_extract.images.loader import Loader\n"
        "from dino_extract.images.preprocess import Preprocess\n"
        f"m = find_images([{str(tmp_path)!r}], suffixes=['.jpg'])\n"
        "with Loader(m, range(4), Preprocess(), workers=2) as loader:\n    print(sum(len(b.rows) for b in loader))\n"
    )

    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    output = subprocess.run([sys.executable, str(script)], check=True, capture_output=True, text=True, env=environment).stdout

    assert output.split() == ["started", "4"]


def test_ctrl_c_ends_a_run_with_one_message(tmp_path: Path) -> None:
    """SIGINT to the whole process group ends the parent with KeyboardInterrupt. The children print no traceback."""
    make_folder(tmp_path, 4)
    code = (
        # A test run in the background of a shell has SIGINT ignored, and its children have too.
        "import signal, time; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from dino_extract.images.finding import find_images; from dino_extract.images.loader import Loader\n"
        "from dino_extract.images.preprocess import Preprocess\n"
        f"m = find_images([{str(tmp_path)!r}])\n"
        "with Loader(m, range(4), Preprocess(), batch=1, workers=2) as loader:\n"
        "    for _ in loader:\n        print('ready', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=REPOSITORY
    )
    assert process.stdout
    process.stdout.readline()

    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=10)

    assert errors.count("Traceback") == 1
    assert errors.strip().endswith("KeyboardInterrupt")


def test_default_number_of_workers_is_bounded() -> None:
    """By default there is one decoder for each processor this process may use, at most 32."""
    assert default_workers() == min(len(os.sched_getaffinity(0)), 32)


@pytest.mark.parametrize(("processors", "processes", "want"), [(512, 8, 32), (128, 8, 16), (128, 1, 32), (32, 8, 4), (2, 8, 1)])
def test_processes_that_share_a_machine_share_its_processors(
    processors: int, processes: int, want: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of eight processes has an eighth of the processors for its decoders. The bound of 32 is for each process."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(processors)))

    assert default_workers(processes) == want


def test_the_error_of_a_thread_that_cannot_start_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the system refuses a thread, its error is raised and the running threads end."""
    manifest, start = make_folder(tmp_path, 3), threading.Thread.start

    def start_first(thread: threading.Thread) -> None:
        if thread.name == "decoder-1":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_first)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        load(manifest)

    assert [thread for thread in threading.enumerate() if thread.name.startswith("decoder")] == []
