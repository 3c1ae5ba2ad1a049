"""Where each member of a `.tar` or `.zip` lies: the list is read once, members are read in place and never extracted."""

from __future__ import annotations

import calendar
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from dino_extract.errors import SourceError
from dino_extract.names import clean_key

SUFFIXES = (b".tar", b".zip")
ZERO_BLOCK = bytes(tarfile.BLOCKSIZE)  # what ends a tar
MAX_MTIME_S = 2**63 // 1_000_000_000 - 1  # above this nanoseconds leave int64

# Before the bytes of each member of a zip (APPNOTE 4.3.7): signature, flags, method, CRC, lengths of the name and of the extra field.
_ZIP_HEADER = struct.Struct("<4s2xHH4xI8xHH")
_ZIP_ENCRYPTED, _ZIP_CRC_FOLLOWS, _ZIP_UTF8 = 0x1, 0x8, 0x800  # flags
_DEFLATE_RATIO = 1032  # no more can be unpacked from one byte
_INFLATE_BYTES = 1 << 18  # compressed bytes read at a time


@dataclass(frozen=True, slots=True)
class Member:
    """One regular file inside an archive.

    In a tar its bytes are `[offset, offset + size)`; in a zip `offset` is where its header begins (see `read_zip_member`), and `size` is
    that of the unpacked bytes.
    """

    offset: int
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class ArchiveIndex:
    """The usable members of one archive by name, and why others are left out (reason -> count).

    `archive_size` (bytes) and `archive_mtime_ns` are the archive's own when it was read; `damage` says where its headers end too early.
    """

    members: dict[bytes, Member]
    skipped: dict[str, int]
    archive_size: int
    archive_mtime_ns: int
    damage: str | None


def is_archive(path: bytes) -> bool:
    """Whether the path is that of an archive that is read in place."""
    return path.lower().endswith(SUFFIXES) and os.path.isfile(path)


def is_zip(path: bytes) -> bool:
    """Whether an archive is a zip, by its name."""
    return path.lower().endswith(b".zip")


def read_archive_index(path: bytes) -> ArchiveIndex:
    """The regular members of an uncompressed tar or of a zip; of members with the same name the last one counts, as when unpacked.

    Absolute names, names with `..`, links, devices, and what is encrypted or packed by other means than deflate are left out and
    counted. A cut or damaged tar gives what can still be read, with a note; a zip has its list at its end, and without it is no source.

    Raises:
        SourceError: the file cannot be opened, is a compressed tar, or is no such archive.
    """
    members: dict[bytes, Member] = {}
    skipped: Counter[str] = Counter()
    damage = None
    try:
        info = os.stat(path)
        if is_zip(path):
            _read_zip(path, info.st_size, members, skipped)
        else:
            damage = _read_tar(path, info.st_size, members, skipped)
    except OSError as error:
        raise SourceError(f"`{os.fsdecode(path)}` cannot be read: {error.strerror}") from error
    if damage:
        skipped[damage] += 1
    return ArchiveIndex(members, dict(skipped), info.st_size, info.st_mtime_ns, damage)


def _read_tar(path: bytes, archive_size: int, members: dict[bytes, Member], skipped: Counter[str]) -> str | None:
    """Fill `members` and `skipped`; what is damaged, if anything."""
    shown = os.fsdecode(path)
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
                if info.isdir():
                    continue
                if info.issparse():
                    skipped["sparse tar member"] += 1
                elif not info.isreg():
                    skipped["link or device in a tar"] += 1
                elif info.size < 0 or info.offset_data + info.size > archive_size:
                    skipped["tar member cut off by the end of the archive"] += 1
                else:
                    member = Member(info.offset_data, info.size, int(min(max(info.mtime, 0), MAX_MTIME_S)) * 1_000_000_000)
                    _add_member("tar", info.name.encode("utf-8", "surrogateescape"), member, members, skipped)
            if not _ends_properly(path, archive.offset):
                return f"rest of `{shown}`, which is cut or damaged at byte {archive.offset:,}"
        except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
            return f"rest of `{shown}`, which is cut or damaged at byte {archive.offset:,} ({error})"
    return None


def _read_zip(path: bytes, archive_size: int, members: dict[bytes, Member], skipped: Counter[str]) -> None:
    """Fill `members` and `skipped` from the list at the end of a zip."""
    try:
        with zipfile.ZipFile(os.fsdecode(path)) as archive:
            listed = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error) as error:
        raise SourceError(
            f"`{os.fsdecode(path)}` cannot be read as a zip archive ({error})",
            hint="a zip that is cut has lost the list at its end: fetch it again, or unpack what is there and give the folder",
        ) from error
    for info in listed:
        if info.filename.endswith("/"):  # a folder; `is_dir` fails for a name without letters
            continue
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):  # 0: not said
            skipped["link or device in a zip"] += 1
        elif info.flag_bits & _ZIP_ENCRYPTED:
            skipped["encrypted zip member"] += 1
        elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            skipped["zip member packed by other means than deflate"] += 1
        elif not 0 <= info.header_offset <= archive_size - _ZIP_HEADER.size - info.compress_size:
            skipped["zip member cut off by the end of the archive"] += 1
        elif info.file_size > _DEFLATE_RATIO * info.compress_size:
            skipped["zip member of an impossible size"] += 1
        else:
            # Names without the flag are in no stated encoding: cp437 gives their bytes back.
            name = info.orig_filename.encode("utf-8" if info.flag_bits & _ZIP_UTF8 else "cp437")
            _add_member("zip", name, Member(info.header_offset, info.file_size, _zip_time_ns(info.date_time)), members, skipped)


def _zip_time_ns(date_time: tuple[int, int, int, int, int, int]) -> int:
    """The time of a zip member, which names no zone, as if it were UTC; 0 for a date that is none."""
    try:
        return calendar.timegm((*date_time, 0, 0, 0)) * 1_000_000_000
    except ValueError:
        return 0


def _add_member(kind: str, name: bytes, member: Member, members: dict[bytes, Member], skipped: Counter[str]) -> None:
    if name.startswith(b"/") or b".." in name.split(b"/"):
        skipped[f"{kind} member with an absolute name or `..`"] += 1
    elif not (key := clean_key(name)) or b"\0" in key:
        skipped[f"{kind} member without a name, or with NUL in it"] += 1
    else:
        members.pop(key, None)
        members[key] = member


def _ends_properly(path: bytes, offset: int) -> bool:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(tarfile.BLOCKSIZE) == ZERO_BLOCK


def read_zip_member(descriptor: int, offset: int, size: int) -> bytes:
    """The unpacked bytes of one member of a zip, checked against their checksum.

    Args:
        descriptor: the open zip.
        offset: where the member's own header begins.
        size: its unpacked bytes; no more are made, whatever the packed ones say.

    Raises:
        zipfile.BadZipFile: there is no member at this place, or its bytes are damaged.
    """
    header = os.pread(descriptor, _ZIP_HEADER.size, offset)
    if len(header) < _ZIP_HEADER.size or not header.startswith(b"PK\3\4"):
        raise zipfile.BadZipFile(f"no member at byte {offset:,} of the zip")
    _, flags, method, crc, name_bytes, extra_bytes = _ZIP_HEADER.unpack(header)
    start = offset + _ZIP_HEADER.size + name_bytes + extra_bytes
    if method == zipfile.ZIP_STORED:
        content, end = b"".join(read_range(descriptor, start, size)), start + size
    else:
        content, end = _inflate(descriptor, start, size)
    if flags & _ZIP_CRC_FOLLOWS:  # with a signature or without
        behind = os.pread(descriptor, 8, end)
        crc = int.from_bytes(behind[4:] if behind.startswith(b"PK\7\x08") else behind[:4], "little")
    if zlib.crc32(content) != crc:
        raise zipfile.BadZipFile("damaged in the zip (its checksum is another)")
    return content


def _inflate(descriptor: int, start: int, size: int) -> tuple[bytes, int]:
    """The unpacked bytes, and where the packed ones end."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)  # no zlib header
    content, position = bytearray(), start
    try:
        while not inflater.eof and len(content) <= size:
            packed = inflater.unconsumed_tail
            if not packed:
                packed = os.pread(descriptor, _INFLATE_BYTES, position)
                position += len(packed)
            content += inflater.decompress(packed, size + 1 - len(content))  # one byte too many tells that there are more
            if not packed:
                break
    except zlib.error as error:
        raise zipfile.BadZipFile(f"damaged in the zip ({error})") from error
    if not inflater.eof or len(content) != size:
        raise zipfile.BadZipFile(f"damaged in the zip ({len(content):,} bytes or more, its list says {size:,} bytes)")
    return bytes(content), position - len(inflater.unused_data)


def read_range(descriptor: int, offset: int, size: int) -> Iterator[bytes]:
    """The `size` bytes at `offset` of an open file in parts, fewer where it has shrunk."""
    while size > 0:
        part = os.pread(descriptor, size, offset)
        if not part:
            return
        yield part
        offset, size = offset + len(part), size - len(part)
