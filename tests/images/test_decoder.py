"""The decoder process: its replies, the failures that it survives, and how it ends."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino_extract.errors import DecodeError
from dino_extract.images.containers import ImageRef
from dino_extract.images.decode import decode_image
from dino_extract.images.decoder import parent
from dino_extract.images.decoder.parent import DecoderDiedError, DecoderProcess
from dino_extract.images.decoder.wire import ReplyHeader
from dino_extract.images.preprocess import Preprocess, preprocess
from dino_extract.status import Status

OPTIONS = Preprocess(height=28, width=42)


def photograph(path: Path, height: int = 90, width: int = 120, image_format: str = "JPEG") -> ImageRef:
    """An image file of noise, and where it is."""
    noise = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, image_format)
    return ImageRef(os.fsencode(path.name), os.fsencode(path), size=path.stat().st_size)


def is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ends_within(pid: int, seconds: float) -> bool:
    """Whether the process ends in this time."""
    end = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not is_alive(pid)


@pytest.fixture
def decoder() -> Iterator[DecoderProcess]:
    """A child that is ready, ended after the test."""
    process = DecoderProcess(OPTIONS)
    process.wait_until_ready()
    yield process
    process.kill()
    process.close()


def test_child_gives_the_same_pixels_as_this_process(decoder: DecoderProcess, tmp_path: Path) -> None:
    """A reply has the pixels that decoding and resizing in this process give, and the size of the original."""
    ref = photograph(tmp_path / "a.jpg")

    decoder.send(ref)
    reply = decoder.receive()

    assert reply.pixels is not None
    assert np.array_equal(reply.pixels, preprocess(decode_image((tmp_path / "a.jpg").read_bytes()), OPTIONS))
    assert (reply.status, reply.error, reply.image_size) == (Status.OK, "", (90, 120))


def test_pixels_are_written_where_asked(decoder: DecoderProcess, tmp_path: Path) -> None:
    """Pixels land in the memory that the caller gives for them, also with two requests open."""
    refs = [photograph(tmp_path / "a.png", 50, 60, "PNG"), photograph(tmp_path / "b.jpg")]
    batch = np.zeros((2, 28, 42, 3), np.uint8)

    for ref in refs:
        decoder.send(ref)
    replies = [decoder.receive(allocate=lambda shape, row=row: batch[row]) for row in range(2)]  # type: ignore[misc]

    assert [reply.status for reply in replies] == [Status.OK, Status.OK]
    assert np.array_equal(batch[1], preprocess(decode_image((tmp_path / "b.jpg").read_bytes()), OPTIONS))


def test_part_of_a_file_is_read(decoder: DecoderProcess, tmp_path: Path) -> None:
    """An image inside a larger file is read from its offset."""
    ref = photograph(tmp_path / "a.png", image_format="PNG")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "s.tar").write_bytes(b"x" * 777 + content + b"y" * 99)

    decoder.send(ref._replace(path=os.fsencode(tmp_path / "s.tar"), kind="tar", token=777))

    assert decoder.receive().status == Status.OK


@pytest.mark.parametrize("name", [b"caf\xe9.jpg", b"new\nline.jpg", b'quote".jpg', b"x" * 251 + b".jpg"])
def test_odd_names_reach_the_child(decoder: DecoderProcess, tmp_path: Path, name: bytes) -> None:
    """Names that are not UTF-8, hold newlines or have 255 bytes reach the child unchanged."""
    photograph(tmp_path / "a.jpg")
    path = os.path.join(os.fsencode(tmp_path), name)
    os.rename(tmp_path / "a.jpg", path)

    decoder.send(ImageRef(name, path))

    assert decoder.receive().status == Status.OK


def test_failures_come_back_as_status_and_text(decoder: DecoderProcess, tmp_path: Path) -> None:
    """A missing file and a text file get a status and a text, and the child goes on."""
    (tmp_path / "text.jpg").write_text("hello")

    decoder.send(ImageRef(b"gone.jpg", os.fsencode(tmp_path / "gone.jpg")))
    decoder.send(ImageRef(b"text.jpg", os.fsencode(tmp_path / "text.jpg")))
    replies = [decoder.receive(), decoder.receive()]

    assert [(reply.status, reply.error) for reply in replies] == [
        (Status.VANISHED, "read: the file has gone"),
        (Status.UNREADABLE, "decode: not an image in a known format"),
    ]


@pytest.fixture
def plain_decoder() -> Iterator[DecoderProcess]:
    """A child that does not resize small images, ended after the test."""
    process = DecoderProcess(OPTIONS, resizes=False)
    process.wait_until_ready()
    yield process
    process.kill()
    process.close()


def test_small_images_may_come_as_decoded(plain_decoder: DecoderProcess, tmp_path: Path) -> None:
    """A child that does not resize gives the decoded pixels, and says so."""
    plain_decoder.send(photograph(tmp_path / "a.jpg"))
    reply = plain_decoder.receive()

    assert reply.pixels is not None
    assert not reply.is_resized
    assert np.array_equal(reply.pixels, decode_image((tmp_path / "a.jpg").read_bytes()))


@pytest.mark.parametrize("shape", [(1100, 1000), (40, 1000), (300, 120)])
def test_large_and_narrow_images_are_always_resized(plain_decoder: DecoderProcess, tmp_path: Path, shape: tuple[int, int]) -> None:
    """The child always resizes images that would take too much memory, or that Pillow resizes in another order."""
    plain_decoder.send(photograph(tmp_path / "a.jpg", *shape))
    reply = plain_decoder.receive()

    assert reply.pixels is not None
    assert reply.is_resized
    assert np.array_equal(reply.pixels, preprocess(decode_image((tmp_path / "a.jpg").read_bytes()), OPTIONS))


def test_size_only_sends_no_pixels(decoder: DecoderProcess, tmp_path: Path) -> None:
    """Asked for a size, the child gives height and width alone."""
    decoder.send(photograph(tmp_path / "a.jpg"), is_size_only=True)
    reply = decoder.receive()

    assert (reply.status, reply.pixels, reply.image_size) == (Status.OK, None, (90, 120))


def test_memory_bomb_costs_its_image_only(tmp_path: Path) -> None:
    """A small file that needs more memory than allowed is CRASHED with a reason. The next image is OK."""
    Image.new("RGB", (9000, 9000)).save(tmp_path / "bomb.png")
    decoder = DecoderProcess(OPTIONS, memory_bytes=200 * 2**20)
    decoder.wait_until_ready()

    decoder.send(ImageRef(b"bomb.png", os.fsencode(tmp_path / "bomb.png")))
    bomb = decoder.receive()
    decoder.send(photograph(tmp_path / "a.jpg"))
    after = decoder.receive()
    decoder.close()

    assert (tmp_path / "bomb.png").stat().st_size < 500_000
    assert (bomb.status, bomb.error) == (Status.CRASHED, "decode: out of memory")
    assert after.status == Status.OK


@pytest.mark.slow
def test_largest_image_fits_the_default_memory_limit(tmp_path: Path) -> None:
    """An image of just under the pixel limit is decoded within the default memory limit, with alpha laid over white."""
    Image.new("RGBA", (10_000, 10_000)).save(tmp_path / "large.png", compress_level=1)
    decoder = DecoderProcess(Preprocess(alpha="white"))
    decoder.wait_until_ready()

    decoder.send(ImageRef(b"large.png", os.fsencode(tmp_path / "large.png")))
    reply = decoder.receive()
    decoder.kill()
    decoder.close()

    assert (reply.status, reply.error) == (Status.OK, "")


def test_stopped_child_times_out(decoder: DecoderProcess, tmp_path: Path) -> None:
    """A child that does not answer is given up after the deadline."""
    os.kill(decoder.pid, signal.SIGSTOP)
    start = time.monotonic()

    decoder.send(photograph(tmp_path / "a.jpg"))
    with pytest.raises(DecoderDiedError, match=r"timed out after 0\.3 s") as caught:
        decoder.receive(0.3)

    assert caught.value.reason == "timeout"
    assert time.monotonic() - start < 3


def test_killed_child_is_reported_with_its_signal(decoder: DecoderProcess, tmp_path: Path) -> None:
    """A child that crashes ends the wait at once, and closing reports the signal."""
    os.kill(decoder.pid, signal.SIGSEGV)

    decoder.send(photograph(tmp_path / "a.jpg"))
    with pytest.raises(DecoderDiedError) as caught:
        decoder.receive()

    assert caught.value.reason == "ended"
    assert decoder.close_after(caught.value) == "decode: decoder crashed (signal 11)"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_child_ignores_signals_to_the_whole_job(decoder: DecoderProcess, tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C and a scheduler's signals, which reach every process, do not end the child. Only the parent decides that."""
    os.kill(decoder.pid, number)
    decoder.send(photograph(tmp_path / "a.jpg"))

    assert decoder.receive().status == Status.OK


def test_child_ends_with_its_stdin(decoder: DecoderProcess) -> None:
    """A child whose parent closes the pipe ends by itself."""
    assert decoder.close(wait_s=5) == "decoder ended with code 0"


def test_killed_parent_leaves_no_child(tmp_path: Path) -> None:
    """SIGKILL to the parent ends a busy child too."""
    code = (
        "import sys; from dino_extract.images.decoder.parent import DecoderProcess\n"
        "from dino_extract.images.preprocess import Preprocess\n"
        "d = DecoderProcess(Preprocess()); d.wait_until_ready(); print(d.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdin
    assert parent.stdout
    child = int(parent.stdout.readline())
    os.kill(child, signal.SIGSTOP)  # as good as busy: it cannot notice that its stdin has ended

    parent.kill()
    parent.wait()

    assert ends_within(child, 5)
    parent.stdin.close()
    parent.stdout.close()


def test_child_takes_no_module_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child does not import a numpy.py from the working directory."""
    (tmp_path / "numpy.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)

    decoder = DecoderProcess(OPTIONS)
    decoder.wait_until_ready()

    assert decoder.close(wait_s=5) == "decoder ended with code 0"


def test_child_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that ends before it is ready gives an error with the last line that it wrote."""
    monkeypatch.setattr(parent, "CHILD_PROGRAM", "raise ImportError('no module here')")
    decoder = DecoderProcess(OPTIONS)

    with pytest.raises(DecodeError, match="the decoder process does not start: ImportError: no module here"):
        decoder.wait_until_ready()

    decoder.close()


def answer_of(shape: tuple[int, int] = (0, 0), *, status: int = 1, form: int = 1, error_bytes: int = 0) -> bytes:
    """The numbers of a reply about an image of 1 x 1 pixels."""
    return ReplyHeader(status, form, error_bytes, *shape, 1, 1).pack()


@pytest.mark.parametrize(
    ("answer", "resizes"),
    [
        (b"garbage " * 100, True),
        (answer_of(status=77), True),
        (answer_of(status=0), True),  # not a fate
        (answer_of(), True),  # neither pixels nor a failure
        (answer_of((28, 42), status=2), True),  # both
        (answer_of((9999, 9999)), True),
        (answer_of((42, 28)), True),
        (answer_of((-28, -42)), True),
        (answer_of((50, 60), form=0), True),  # decoded pixels, for which nobody asked
        (answer_of((0, 60), form=0), False),
        (answer_of((-50, -60), form=0), False),
        (answer_of((5000, 5000), form=0), False),
        (answer_of((50, 60), form=1), False),
        (answer_of((1, 5000), form=2), False),  # a JPEG as it is, for which nobody asked
        (answer_of((50, 60), form=3), False),
    ],
)
def test_nonsense_from_the_child_is_not_believed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: bytes, resizes: bool) -> None:
    """A child that an image has taken over can only make its own image fail. No memory is taken for an impossible reply."""
    talk = f"import sys; sys.stdin.buffer.read(1); sys.stdout.buffer.write({answer!r}); sys.stdout.flush(); sys.stdin.read()"
    monkeypatch.setattr(parent, "CHILD_PROGRAM", talk)
    decoder = DecoderProcess(OPTIONS, resizes=resizes)

    decoder.send(photograph(tmp_path / "a.jpg"))
    with pytest.raises(DecoderDiedError, match="decoder answered nonsense"):
        decoder.receive(5, allocate=lambda shape: pytest.fail(f"asked for {shape}"))

    decoder.kill()
    decoder.close()


def test_an_answer_that_stops_in_the_middle_times_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A child that announces pixels and sends too few is given up after the deadline."""
    answer = answer_of((28, 42)) + bytes(99)
    talk = f"import sys; sys.stdin.buffer.read(1); sys.stdout.buffer.write({answer!r}); sys.stdout.flush(); sys.stdin.read()"
    monkeypatch.setattr(parent, "CHILD_PROGRAM", talk)
    decoder = DecoderProcess(OPTIONS)

    decoder.send(photograph(tmp_path / "a.jpg"))
    with pytest.raises(DecoderDiedError, match=r"timed out after 0\.3 s"):
        decoder.receive(0.3)

    decoder.kill()
    decoder.close()


def test_pixels_larger_than_the_pipe_come_whole(plain_decoder: DecoderProcess, tmp_path: Path) -> None:
    """3 MB of decoded pixels, more than the pipe holds, arrive complete, with the next request already sent."""
    refs = [photograph(tmp_path / name, 1024, 1024, "PNG") for name in ("a.png", "b.png")]
    for ref in refs:
        plain_decoder.send(ref)

    pixels = [plain_decoder.receive().pixels for _ in refs]

    want = decode_image((tmp_path / "a.png").read_bytes())
    assert all(np.array_equal(got, want) for got in pixels)


def test_child_starts_without_torch() -> None:
    """The child imports neither torch nor timm nor h5py, so that it starts fast."""
    code = "import sys; import dino_extract.images.decoder.child; print({'torch', 'timm', 'h5py'} & set(sys.modules))"

    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2]).stdout

    assert output.strip() == "set()"


def test_library_that_prints_does_not_disturb_the_protocol(tmp_path: Path) -> None:
    """Text that C libraries write to stdout and stderr about a damaged TIFF is discarded."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "TIFF", compression="tiff_lzw")
    (tmp_path / "a.tif").write_bytes(buffer.getvalue().replace(b"\x80", b"\x7f", 1))
    code = (
        "import sys, os; from dino_extract.images.decoder.parent import DecoderProcess\n"
        "from dino_extract.images.preprocess import Preprocess\n"
        "from dino_extract.images.manifest import ImageRef\n"
        "d = DecoderProcess(Preprocess()); d.wait_until_ready(); d.send(ImageRef(b'a', os.fsencode(sys.argv[1])))\n"
        "print(d.receive().error); d.close()"
    )

    result = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.tif")], check=True, capture_output=True, text=True)

    assert result.stderr == ""
    assert result.stdout.startswith("decode: OSError")
