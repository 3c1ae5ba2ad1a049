"""Where each member of a `.tar` shard lies: headers are streamed once, members are read in place and never extracted."""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from dino_extract.errors import SourceError

ZERO_BLOCK = bytes(tarfile.BLOCKSIZE)  # what ends an archive
MAX_MTIME_S = 2**63 // 1_000_000_000 - 1  # above this nanoseconds leave int64


@dataclass(frozen=True)
class Member:
    """One regular file inside a tar: its bytes are `[offset, offset + size)` of the archive."""

    offset: int
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class TarIndex:
    """The usable members of one tar by name, and why others are left out (reason -> count).

    `archive_size` (bytes) and `archive_mtime_ns` are the tar's own when it was read; `damage` says where its headers end too early.
    """

    members: dict[bytes, Member]
    skipped: dict[str, int]
    archive_size: int
    archive_mtime_ns: int
    damage: str | None


def read_tar_index(path: bytes) -> TarIndex:
    """The regular members of an uncompressed tar; of members with the same name the last one counts, as in `tar -x`.

    Absolute names, names with `..`, links, devices and sparse members are left out and counted. A cut or damaged archive gives what
    can still be read, with a note.

    Raises:
        SourceError: the file cannot be opened, is compressed, or does not start as a tar does.
    """
    try:
        stat = os.stat(path)
        return _read_tar_index(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise SourceError(f"`{os.fsdecode(path)}` cannot be read: {error.strerror}") from error


@lru_cache(maxsize=4)  # resolving the rows of a few shards one by one must not read their headers again each time
def _read_tar_index(path: bytes, archive_size: int, archive_mtime_ns: int) -> TarIndex:
    members: dict[bytes, Member] = {}
    skipped: Counter[str] = Counter()
    shown = os.fsdecode(path)
    damage = None
    try:
        archive = tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115 - closed by the with below
    except tarfile.TarError as error:
        raise SourceError(
            f"`{shown}` is not an uncompressed tar archive ({error})",
            hint="compressed archives cannot be read in place: decompress it first",
        ) from error
    with archive:
        try:
            while (info := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # else tarfile keeps 1 KB for each member
                _add_member(info, archive_size, members, skipped)
            if not _ends_properly(path, archive.offset):
                damage = f"rest of `{shown}`, which is cut or damaged at byte {archive.offset:,}"
        except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
            damage = f"rest of `{shown}`, which is cut or damaged at byte {archive.offset:,} ({error})"
    if damage:
        skipped[damage] += 1
    return TarIndex(members, dict(skipped), archive_size, archive_mtime_ns, damage)


def _add_member(info: tarfile.TarInfo, archive_size: int, members: dict[bytes, Member], skipped: Counter[str]) -> None:
    name = info.name.encode("utf-8", "surrogateescape")
    if info.isdir():
        return
    if info.issparse():
        skipped["sparse tar member"] += 1
    elif not info.isreg():
        skipped["link or device in a tar"] += 1
    elif name.startswith(b"/") or b".." in name.split(b"/"):
        skipped["tar member with an absolute name or `..`"] += 1
    elif info.size < 0 or info.offset_data + info.size > archive_size:
        skipped["tar member cut off by the end of the archive"] += 1
    elif not (key := clean_key(name)) or b"\0" in key:
        skipped["tar member without a name, or with NUL in it"] += 1
    else:
        members.pop(key, None)
        members[key] = Member(info.offset_data, info.size, int(min(max(info.mtime, 0), MAX_MTIME_S)) * 1_000_000_000)


def _ends_properly(path: bytes, offset: int) -> bool:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(tarfile.BLOCKSIZE) == ZERO_BLOCK


def clean_key(path: bytes) -> bytes:
    """The path without `.` parts and doubled slashes; `..` stays, because dropping it could change what a symlink points to.

    >>> clean_key(b"./a//b/./c.jpg")
    b'a/b/c.jpg'
    """
    root = b"/" if path.startswith(b"/") else b""
    return root + b"/".join(part for part in path.split(b"/") if part not in (b"", b"."))
