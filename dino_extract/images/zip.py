"""Images inside a `.zip`, read in place: the list at its end is read once, and members are unpacked one by one in memory."""

from __future__ import annotations

import calendar
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable

from dino_extract.errors import SourceError
from dino_extract.images.containers import Entry, FileFilter, ImageError, ImageRef, opened, read_range, require_small, unreadable_source
from dino_extract.images.members import Members
from dino_extract.names import printable
from dino_extract.status import Status

# The header before the bytes of each member (APPNOTE 4.3.7): signature, flags, method, CRC, lengths of the name and of the extra field.
_HEADER = struct.Struct("<4s2xHH4xI8xHH")
_ENCRYPTED, _CRC_FOLLOWS, _UTF8 = 0x1, 0x8, 0x800  # flags
_DEFLATE_RATIO = 1032  # one packed byte gives at most this many
_INFLATE_BYTES = 1 << 18  # compressed bytes read at a time


class Zip:
    """A zip with stored or deflated members. The token of an image is the offset of its header."""

    kind = "zip"

    def serves(self, path: bytes, mode: int) -> bool:
        """Regular files with the suffix `.zip`."""
        return path.lower().endswith(b".zip") and stat.S_ISREG(mode)

    def entries(self, path: bytes, key: bytes, wanted: FileFilter) -> Iterable[Entry]:
        """Regular members that are stored or deflated and not encrypted; the others are counted.

        Raises:
            SourceError: the file cannot be opened, or has no list at its end.
        """
        members = Members(self.kind, wanted)
        try:
            archive_size = os.stat(path).st_size
            for info in _listed(path):
                _add(info, archive_size, members)
        except OSError as error:
            raise unreadable_source(path, error) from error
        return members.entries(key)

    def read(self, ref: ImageRef, max_bytes: int) -> bytes:
        """The unpacked bytes of one member, checked against their checksum. Never unpacks more bytes than the list says."""
        with opened(ref) as (descriptor, _):
            require_small(ref.size, max_bytes)
            return _read_member(descriptor, ref.token, ref.size)


def _listed(path: bytes) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(os.fsdecode(path)) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error) as error:
        raise SourceError(
            f"`{printable(path)}` cannot be read as a zip archive ({error})",
            hint="a zip that is cut has lost the list at its end: fetch it again, or unpack what is there and give the folder",
        ) from error


def _add(info: zipfile.ZipInfo, archive_size: int, members: Members) -> None:
    if info.filename.endswith("/"):  # a folder; `is_dir` fails for a name without letters
        return
    if reason := _reason_to_skip(info, archive_size):
        members.skip(reason)
        return
    # Names without the flag are in no stated encoding: cp437 gives their bytes back.
    name = info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8 else "cp437")
    members.add(name, info.file_size, _time_ns(info.date_time), info.header_offset)


def _reason_to_skip(info: zipfile.ZipInfo, archive_size: int) -> str | None:
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):  # 0: not stated
        return "link or device in a zip"
    if info.flag_bits & _ENCRYPTED:
        return "encrypted zip member"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "zip member packed by other means than deflate"
    if not 0 <= info.header_offset <= archive_size - _HEADER.size - info.compress_size:
        return "zip member cut off by the end of the archive"
    if info.file_size > _DEFLATE_RATIO * info.compress_size:
        return "zip member of an impossible size"
    return None


def _time_ns(date_time: tuple[int, int, int, int, int, int]) -> int:
    """The time of a member as if it were UTC, because a zip names no time zone. 0 for an impossible date."""
    try:
        return calendar.timegm((*date_time, 0, 0, 0)) * 1_000_000_000
    except ValueError:
        return 0


def _read_member(descriptor: int, offset: int, size: int) -> bytes:
    header = os.pread(descriptor, _HEADER.size, offset)
    if len(header) < _HEADER.size or not header.startswith(b"PK\3\4"):
        raise ImageError(Status.UNREADABLE, f"read: no member at byte {offset:,} of the zip")
    _, flags, method, crc, name_bytes, extra_bytes = _HEADER.unpack(header)
    start = offset + _HEADER.size + name_bytes + extra_bytes
    if method == zipfile.ZIP_STORED:
        content, end = read_range(descriptor, start, size), start + size
    else:
        content, end = _inflate(descriptor, start, size)
    if flags & _CRC_FOLLOWS:  # with a signature or without
        behind = os.pread(descriptor, 8, end)
        crc = int.from_bytes(behind[4:] if behind.startswith(b"PK\7\x08") else behind[:4], "little")
    if zlib.crc32(content) != crc:
        raise _damaged("its checksum is another")
    return content


def _inflate(descriptor: int, start: int, size: int) -> tuple[bytes, int]:
    """The unpacked bytes, and the offset where the packed ones end."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)  # no zlib header
    content, position = bytearray(), start
    try:
        while not inflater.eof and len(content) <= size:
            packed = inflater.unconsumed_tail
            if not packed:
                packed = os.pread(descriptor, _INFLATE_BYTES, position)
                position += len(packed)
            content += inflater.decompress(packed, size + 1 - len(content))  # one byte too many shows that there are more
            if not packed:
                break
    except zlib.error as error:
        raise _damaged(str(error)) from error
    if not inflater.eof or len(content) != size:
        raise _damaged(f"{len(content):,} bytes or more, its list says {size:,} bytes")
    return bytes(content), position - len(inflater.unused_data)


def _damaged(why: str) -> ImageError:
    return ImageError(Status.UNREADABLE, f"read: damaged in the zip ({why})")
