"""A machine without weights, and a web server that misbehaves as told."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

# A model of half a million parameters, for tests of where files go.
SMALL_ARCHITECTURE = {
    "embed_dim": 128,
    "depth": 2,
    "num_heads": 2,
    "ffn": "mlp",
    "num_registers": 4,
    "image_size": 70,
    "interpolate_offset": 0.0,
    "interpolate_antialias": True,
}


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No weights anywhere and no way to the network: every cache is an empty folder of the test, which is given back."""
    home = tmp_path / "home"
    monkeypatch.setenv("DINO_EXTRACT_CACHE", str(home / "dino-extract"))
    monkeypatch.setenv("TORCH_HOME", str(home / "torch"))
    monkeypatch.setenv("HF_HOME", str(home / "huggingface"))
    monkeypatch.setenv("DINO_EXTRACT_WEIGHTS_URL", "http://127.0.0.1:9")  # the discard port: nobody listens
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # so that no test leaves this machine
    for name in (
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "DINO_EXTRACT_OFFLINE",
        "http_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "no_proxy",
        "NO_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    return home


@dataclass
class Misbehaving:
    """What the server does; each fault is taken off its list when it happens.

    Args:
        body: the file.
        statuses: answered instead of the file, in turn.
        cuts: after how many bytes of the answer the connection ends, in turn.
        ranges: whether Range is obeyed.
        etag: sent with the file.
    """

    body: bytes = b""
    statuses: list[int] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    ranges: bool = True
    etag: str | None = '"1"'
    requests: list[dict[str, str]] = field(default_factory=list)
    url: str = ""

    @property
    def sha256(self) -> str:
        """Of the file."""
        return hashlib.sha256(self.body).hexdigest()


@pytest.fixture
def server() -> Iterator[Misbehaving]:
    """A real server on localhost."""
    told = Misbehaving()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told.requests.append(dict(self.headers))
            if told.statuses:
                self.send_error(told.statuses.pop(0))
                return
            start = 0
            asked = self.headers.get("Range")
            same = self.headers.get("If-Range") in (None, told.etag)
            if asked and told.ranges and same:
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
                if start >= len(told.body):
                    self.send_error(416)
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(told.body) - 1}/{len(told.body)}")
            else:
                self.send_response(200)
            content = told.body[start:]
            self.send_header("Content-Length", str(len(content)))
            if told.etag:
                self.send_header("ETag", told.etag)
            self.end_headers()
            self.wfile.write(content[: told.cuts.pop(0)] if told.cuts else content)

        def log_message(self, *_: object) -> None:
            """Stay quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        told.url = f"http://127.0.0.1:{httpd.server_port}"
        yield told
        httpd.shutdown()
        thread.join()
