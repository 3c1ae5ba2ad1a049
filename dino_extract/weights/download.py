"""A large file from the network to the disk: resumed, retried, checked, and there whole or not at all."""

from __future__ import annotations

import errno
import http
import http.client
import json
import os
import shutil
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from dino_extract.errors import WeightsError
from dino_extract.files import FileLock, sync_folder
from dino_extract.weights.checksum import file_sha256

CHUNK_BYTES = 1 << 20
READ_TIMEOUT_S = 30.0  # silence of the server after which a transfer is resumed
CONNECT_TIMEOUT_S = 1.5  # a machine without network must say so within two seconds
ATTEMPTS = 5  # in a row without one new byte
TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}
OTHER_FOLDER = "choose another folder with the environment variable DINO_EXTRACT_CACHE"

DownloadProgress = Callable[[int, int], None]  # bytes there, bytes in all


def download(
    url: str,
    path: Path,
    *,
    sha256: str,
    size_bytes: int,
    extra_bytes: int = 0,
    progress: DownloadProgress | None = None,
    backoff_s: float = 1.0,
) -> None:
    """Put the file at `url` to `path`, continuing what an interrupted download left behind.

    Args:
        url: http or https.
        path: of the finished file; what is there so far is beside it, with the suffix `.partial`.
        sha256: of the whole file; a file with another one is removed.
        size_bytes: of the whole file.
        extra_bytes: what the caller will write to the same disk afterwards; checked before the download starts.
        progress: called after every chunk.
        backoff_s: wait after a first failure, doubled after each further one.

    Raises:
        WeightsError: the server does not have the file, has another one, keeps failing, or the disk is full.
    """
    partial = path.with_name(path.name + ".partial")
    _check_space(path, size_bytes + extra_bytes - _size(partial))
    best, failures = _size(partial), 0
    while _size(partial) < size_bytes:
        reason = _try_transfer(url, partial, size_bytes, progress)
        failures = 0 if _size(partial) > best else failures + 1
        best = max(best, _size(partial))
        if failures == ATTEMPTS:
            raise WeightsError(
                f"`{url}` cannot be downloaded: {reason} ({ATTEMPTS} times in a row)",
                hint="the same command continues where this one stopped",
            )
        if failures:
            time.sleep(backoff_s * 2 ** (failures - 1))
    _finish(url, partial, path, sha256)


def unreachable(urls: Iterable[str], timeout_s: float = CONNECT_TIMEOUT_S) -> dict[str, str]:
    """Why the servers of some URLs, or the proxies in front of them, take no connection; those that do are left out.

    All are tried at the same time. Looking up a name can hang for longer than any timeout of a socket, so each happens in a
    thread that may be left behind.

    Raises:
        WeightsError: a URL is not for http or https.
    """
    addresses = {url: _address(url) for url in urls}
    outcomes: dict[tuple[str, int], str | None] = {}

    def connect(address: tuple[str, int]) -> None:
        try:
            socket.create_connection(address, timeout=timeout_s).close()
        except OSError as error:
            outcomes[address] = error.strerror or str(error)
        else:
            outcomes[address] = None

    threads = [threading.Thread(target=connect, args=(address,), daemon=True) for address in set(addresses.values())]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    reasons = {url: outcomes.get(address, f"no answer in {timeout_s:g} s") for url, address in addresses.items()}
    return {url: f"`{addresses[url][0]}`: {reason}" for url, reason in reasons.items() if reason is not None}


@contextmanager
def locked(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """A block that one process at a time enters for a path; the others wait, after calling `waiting` once.

    On a file system without locks all enter at once; the hash finds what two downloads have mixed.

    Raises:
        WeightsError: the folder of the path cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(path.name + ".lock"), on_wait=waiting or (lambda: None))
    except OSError as error:
        raise WeightsError(f"folder `{path.parent}` cannot be written: {error.strerror}", hint=OTHER_FOLDER) from error
    with lock:
        yield


def _address(url: str) -> tuple[str, int]:
    """Host and port to connect to for a URL: its own, or those of the proxy that the environment names."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise WeightsError(f"`{url}` is not an http or https address")
    proxy = None if urllib.request.proxy_bypass(parts.hostname) else urllib.request.getproxies().get(parts.scheme)
    if proxy:
        parts = urllib.parse.urlsplit(proxy if "//" in proxy else f"http://{proxy}")
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _try_transfer(url: str, partial: Path, size_bytes: int, progress: DownloadProgress | None) -> str:
    """Transfer what is missing, or say in words why some of it still is."""
    try:
        _transfer(url, partial, size_bytes, progress)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and partial.exists():
            partial.unlink()  # the file there is shorter than what we have: start over
        elif error.code not in TRANSIENT_STATUS:
            raise WeightsError(f"`{url}` cannot be downloaded: the server answers {error.code} {error.reason}") from error
        return f"the server answers {error.code} {error.reason}"
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise _no_space(partial, size_bytes - _size(partial)) from error
        return str(error) or type(error).__name__
    return f"the connection ended after {_size(partial):,} bytes"


def _transfer(url: str, partial: Path, size_bytes: int, progress: DownloadProgress | None) -> None:
    """Append what is missing to `partial`, or start over where the server cannot continue."""
    about = partial.with_name(partial.name + ".json")
    there = _size(partial)
    headers = {"User-Agent": "dino-extract", "Accept-Encoding": "identity"}
    if there:
        headers |= {"Range": f"bytes={there}-"} | _validator(about, url)
    request = urllib.request.Request(url, headers=headers)
    # Its own opener, because the shared one keeps the proxies of the first use.
    with urllib.request.build_opener().open(request, timeout=READ_TIMEOUT_S) as response:
        continued = response.status == http.HTTPStatus.PARTIAL_CONTENT and response.headers.get("Content-Range", "").startswith(
            f"bytes {there}-"
        )
        there = there if continued else 0
        length = response.headers.get("Content-Length")
        if length is not None and there + int(length) != size_bytes:
            raise WeightsError(f"`{url}` has {there + int(length):,} bytes, expected {size_bytes:,}: it is another file")
        about.write_text(json.dumps({"url": url, "etag": response.headers.get("ETag")}))
        with open(partial, "ab" if continued else "wb") as file:
            _copy(response, file, there, size_bytes, url, progress)


def _copy(
    response: http.client.HTTPResponse, file: BinaryIO, there: int, size_bytes: int, url: str, progress: DownloadProgress | None
) -> None:
    while chunk := response.read(CHUNK_BYTES):
        there += len(chunk)
        if there > size_bytes:
            raise WeightsError(f"`{url}` has more than the expected {size_bytes:,} bytes: it is another file")
        file.write(chunk)
        if progress is not None:
            progress(there, size_bytes)


def _validator(about: Path, url: str) -> dict[str, str]:
    """The header that makes the server start over if the file is no longer the one that the bytes already there are from."""
    try:
        said = json.loads(about.read_text())
    except (OSError, ValueError):  # killed before it was noted; the hash of the whole file decides
        return {}
    if said.get("url") != url:
        return {"If-Range": '"another file"'}
    etag = said.get("etag")
    return {"If-Range": etag} if etag and not etag.startswith("W/") else {}


def _finish(url: str, partial: Path, path: Path, sha256: str) -> None:
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    found = file_sha256(partial)
    partial.with_name(partial.name + ".json").unlink(missing_ok=True)
    if found != sha256:
        partial.unlink()
        raise WeightsError(f"`{url}` has SHA-256 {found}, expected {sha256}; the downloaded file was removed")
    os.replace(partial, path)
    sync_folder(path.parent)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _check_space(path: Path, needed_bytes: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(path.parent).free < needed_bytes:
        raise _no_space(path, needed_bytes)


def _no_space(path: Path, needed_bytes: int) -> WeightsError:
    free = shutil.disk_usage(path.parent).free
    return WeightsError(
        f"`{path.parent}` has {free:,} bytes free, the download needs {needed_bytes:,} more",
        hint=f"free some space, or {OTHER_FOLDER}",
    )
