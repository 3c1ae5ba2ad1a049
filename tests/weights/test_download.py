"""A download from a real server ends with the whole file or with an error that says why, whatever the server does."""

from __future__ import annotations

import errno
import fcntl
import random
import resource
import signal
import threading
import time
from pathlib import Path

import pytest

from dino_extract.errors import WeightsError
from dino_extract.weights import download as module
from dino_extract.weights.download import download, locked, unreachable
from tests.weights.conftest import Misbehaving

BODY = random.Random(0).randbytes(3_000_000)


def get(server: Misbehaving, path: Path, **changes: object) -> None:
    """Download the body from the server without waiting long between attempts."""
    server.body = server.body or BODY
    arguments = {"sha256": server.sha256, "size_bytes": len(server.body), "backoff_s": 0.001} | changes
    download(f"{server.url}/file.pth", path, **arguments)  # type: ignore[arg-type]


def test_file_arrives_whole(server: Misbehaving, tmp_path: Path) -> None:
    """A good server gives the file, and nothing else stays in the folder."""
    get(server, tmp_path / "file")

    assert (tmp_path / "file").read_bytes() == BODY
    assert {path.name for path in tmp_path.iterdir()} == {"file"}


def test_progress_ends_with_all_bytes(server: Misbehaving, tmp_path: Path) -> None:
    """Progress is told in rising bytes of the whole file, the last being all of them."""
    told: list[tuple[int, int]] = []

    get(server, tmp_path / "file", progress=lambda there, total: told.append((there, total)))

    assert told == sorted(told)
    assert told[-1] == (len(BODY), len(BODY))


def test_cut_connection_is_continued(server: Misbehaving, tmp_path: Path) -> None:
    """Where connections end early, each new request asks only for the bytes that are missing."""
    server.cuts = [1_000_000, 500_000]

    get(server, tmp_path / "file")

    assert (tmp_path / "file").read_bytes() == BODY
    assert [request.get("Range") for request in server.requests] == [None, "bytes=1000000-", "bytes=1500000-"]


def test_killed_download_is_continued_by_the_next(server: Misbehaving, tmp_path: Path) -> None:
    """What an earlier process left behind is not downloaded again."""
    (tmp_path / "file.partial").write_bytes(BODY[:2_000_000])
    (tmp_path / "file.partial.json").write_text(f'{{"url": "{server.url}/file.pth", "etag": "\\"1\\""}}')

    get(server, tmp_path / "file")

    assert (tmp_path / "file").read_bytes() == BODY
    assert server.requests[0]["Range"] == "bytes=2000000-"


@pytest.mark.parametrize("left", [{"etag": '\\"old\\"', "url": "file.pth"}, {"etag": '\\"1\\"', "url": "another.pth"}])
def test_bytes_of_another_file_are_not_continued(left: dict[str, str], server: Misbehaving, tmp_path: Path) -> None:
    """Left-over bytes of an earlier version or of another address are thrown away."""
    (tmp_path / "file.partial").write_bytes(b"x" * 2_000_000)
    (tmp_path / "file.partial.json").write_text(f'{{"url": "{server.url}/{left["url"]}", "etag": "{left["etag"]}"}}')

    get(server, tmp_path / "file")

    assert (tmp_path / "file").read_bytes() == BODY


def test_server_that_ignores_range_starts_over(server: Misbehaving, tmp_path: Path) -> None:
    """A server that answers a Range with the whole file gives the whole file, not two pieces of it."""
    server.ranges, server.cuts = False, [1_000_000]

    get(server, tmp_path / "file")

    assert (tmp_path / "file").read_bytes() == BODY


@pytest.mark.parametrize("status", [500, 503, 429])
def test_transient_error_is_tried_again(status: int, server: Misbehaving, tmp_path: Path) -> None:
    """Errors that pass by themselves are waited out."""
    server.statuses = [status, status]

    get(server, tmp_path / "file")

    assert (tmp_path / "file").read_bytes() == BODY


def test_missing_file_is_an_error_at_once(server: Misbehaving, tmp_path: Path) -> None:
    """404 is not tried again."""
    server.statuses = [404]

    with pytest.raises(WeightsError, match="the server answers 404 Not Found"):
        get(server, tmp_path / "file")

    assert len(server.requests) == 1


def test_server_that_keeps_failing_is_an_error(server: Misbehaving, tmp_path: Path) -> None:
    """After five failures in a row without a new byte the download gives up, and keeps what it has."""
    server.cuts = [1_000_000]
    server.ranges = True
    server.body = BODY
    server.etag = None
    get_first = threading.Event()

    def fail_after_first(there: int, _: int) -> None:
        if there >= 1_000_000 and not get_first.is_set():
            server.statuses = [500] * 50
            get_first.set()

    with pytest.raises(WeightsError, match=r"500 Internal Server Error \(5 times in a row\)"):
        get(server, tmp_path / "file", progress=fail_after_first)

    assert (tmp_path / "file.partial").stat().st_size == 1_000_000
    assert len(server.requests) == 6


def test_wrong_content_is_removed(server: Misbehaving, tmp_path: Path) -> None:
    """A file of the right size with another hash is removed, and both hashes are named."""
    wanted = "0" * 64
    server.body = BODY

    with pytest.raises(WeightsError, match=f"has SHA-256 {server.sha256}, expected {wanted}"):
        get(server, tmp_path / "file", sha256=wanted)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [len(BODY) - 1, len(BODY) + 1])
def test_wrong_size_is_refused_before_downloading(size: int, server: Misbehaving, tmp_path: Path) -> None:
    """A server that announces another size has another file."""
    with pytest.raises(WeightsError, match=f"has {len(BODY):,} bytes, expected {size:,}: it is another file"):
        get(server, tmp_path / "file", size_bytes=size)


def test_longer_left_over_than_the_file_is_removed(server: Misbehaving, tmp_path: Path) -> None:
    """More left-over bytes than the file has cannot be it."""
    (tmp_path / "file.partial").write_bytes(BODY + b"x")

    with pytest.raises(WeightsError, match="the downloaded file was removed"):
        get(server, tmp_path / "file")

    assert not (tmp_path / "file.partial").exists()


def test_missing_space_is_an_error_before_downloading(server: Misbehaving, tmp_path: Path) -> None:
    """A download that cannot fit on the disk does not start."""
    with pytest.raises(WeightsError, match=r"bytes free, the download needs 1,000,000,000,003,000,000 more"):
        get(server, tmp_path / "file", extra_bytes=10**18)

    assert server.requests == []


def test_write_that_fails_names_the_free_space(server: Misbehaving, tmp_path: Path) -> None:
    """A limit met while writing is reported as missing space, and what was written stays."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, before[1]))

    try:
        with pytest.raises(WeightsError, match="bytes free, the download needs"):
            get(server, tmp_path / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)

    assert 0 < (tmp_path / "file.partial").stat().st_size <= 1_500_000


def test_unreachable_server_is_known_in_time() -> None:
    """A closed port and a name that does not exist are reported before the timeout, each with its host."""
    start = time.monotonic()

    reasons = unreachable(["http://127.0.0.1:9/x", "http://name.invalid/y"], timeout_s=1.0)

    assert time.monotonic() - start < 1.5
    assert reasons["http://127.0.0.1:9/x"] == "`127.0.0.1`: Connection refused"
    assert reasons["http://name.invalid/y"].startswith("`name.invalid`: ")


def test_hanging_name_lookup_does_not_hold_anybody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where looking up a name hangs, the answer comes at the timeout."""
    released = threading.Event()

    def hang(*_: object, **__: object) -> None:
        released.wait(10)
        raise OSError("name lookup ended")

    monkeypatch.setattr(module.socket, "create_connection", hang)
    start = time.monotonic()

    reasons = unreachable(["http://example.org/x"], timeout_s=0.2)
    released.set()

    assert time.monotonic() - start < 1
    assert reasons == {"http://example.org/x": "`example.org`: no answer in 0.2 s"}


def test_reachable_server_gives_no_reason(server: Misbehaving) -> None:
    """A server that takes connections is left out of the reasons."""
    assert unreachable([f"{server.url}/x"]) == {}


def test_proxy_of_the_environment_is_used(server: Misbehaving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `http_proxy` set, the proxy is asked for the whole address."""
    monkeypatch.setenv("http_proxy", server.url)
    server.body = BODY
    url = "http://weights.invalid/file.pth"

    reasons = unreachable([url])
    download(url, tmp_path / "file", sha256=server.sha256, size_bytes=len(BODY))

    assert reasons == {}
    assert server.requests[0]["Host"] == "weights.invalid"
    assert (tmp_path / "file").read_bytes() == BODY


def test_only_http_is_fetched(tmp_path: Path) -> None:
    """Addresses of other kinds are refused."""
    with pytest.raises(WeightsError, match="`file:///etc/passwd` is not an http or https address"):
        unreachable(["file:///etc/passwd"])


def test_second_holder_of_a_lock_waits(tmp_path: Path) -> None:
    """Two downloads of the same file do not run at the same time, and the second says that it waits."""
    order: list[str] = []
    waiting = threading.Event()

    def second() -> None:
        with locked(tmp_path / "file", waiting.set):
            order.append("second")

    with locked(tmp_path / "file"):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(5)
        order.append("first")
    thread.join()

    assert order == ["first", "second"]


def test_a_file_system_without_locks_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where locks are not supported the block is entered without one."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    entered = []

    with locked(tmp_path / "file"):
        entered.append(True)

    assert entered == [True]
