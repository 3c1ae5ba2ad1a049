"""Images inside an uncompressed `.tar`, read in place: the headers are read once and nothing is extracted."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterable

from dino_extract.errors import SourceError
from dino_extract.images.containers import Entry, FileFilter, ImageRef, opened, read_range, start_of_keys, unreadable_source
from dino_extract.images.members import Members
from dino_extract.names import printable

ZERO_BLOCK = bytes(tarfile.BLOCKSIZE)  # ends a tar
MAX_MTIME_S = 2**63 // 1_000_000_000 - 1  # above this nanoseconds leave int64


class Tar:
    """An uncompressed tar. The token of an image is the offset of its first byte."""

    kind = "tar"

    def serves(self, path: bytes, mode: int) -> bool:
        """Regular files with the suffix `.tar`."""
        return path.lower().endswith(b".tar") and stat.S_ISREG(mode)

    def entries(self, path: bytes, key: bytes, wanted: FileFilter) -> Iterable[Entry]:
        """Regular members; the others are counted. A cut or damaged tar gives the members that can still be read, and a note.

        Raises:
            SourceError: the file cannot be opened, is compressed, or is not a tar.
        """
        members = Members(self.kind, wanted)
        try:
            damage = _read(path, members)
        except OSError as error:
            raise unreadable_source(path, error) from error
        if damage:
            wanted.note_unread(damage, start_of_keys(key))
        return members.entries(key)

    def read(self, ref: ImageRef, max_bytes: int) -> bytes:
        """The bytes of one member."""
        with opened(ref) as (descriptor, _):
            return read_range(descriptor, ref.token, ref.size, max_bytes=max_bytes)


def _read(path: bytes, members: Members) -> str | None:
    """Read all headers. Returns a text about damage, if there is any."""
    archive_size = os.stat(path).st_size
    try:
        archive = tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115 - closed by the with below
    except tarfile.TarError as error:
        raise SourceError(
            f"`{printable(path)}` is not an uncompressed tar archive ({error})",
            hint="compressed archives cannot be read in place: decompress it first",
        ) from error
    with archive:
        problem = ""
        try:
            while (info := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # else tarfile keeps 1 KB for each member
                _add(info, archive_size, members)
            if _ends_properly(path, archive.offset):
                return None
        except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
            problem = f" ({error})"
        return f"rest of `{os.fsdecode(path)}`, which is cut or damaged at byte {archive.offset:,}{problem}"


def _add(info: tarfile.TarInfo, archive_size: int, members: Members) -> None:
    if info.isdir():
        return
    if info.issparse():
        members.skip("sparse tar member")
    elif not info.isreg():
        members.skip("link or device in a tar")
    elif info.size < 0 or info.offset_data + info.size > archive_size:
        members.skip("tar member cut off by the end of the archive")
    else:
        mtime_ns = int(min(max(info.mtime, 0), MAX_MTIME_S)) * 1_000_000_000
        members.add(info.name.encode("utf-8", "surrogateescape"), info.size, mtime_ns, info.offset_data)


def _ends_properly(path: bytes, offset: int) -> bool:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(tarfile.BLOCKSIZE) == ZERO_BLOCK
