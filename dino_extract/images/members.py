"""The members of one archive while its list is read."""

from __future__ import annotations

from collections.abc import Iterator

from dino_extract.images.containers import Entry, FileFilter, start_of_keys
from dino_extract.names import clean_key


class Members:
    """Usable members by name. Of members with the same name the last one counts, as when the archive is unpacked.

    Args:
        kind: `tar` or `zip`, for the reasons.
        wanted: counts the members that are left out.
    """

    def __init__(self, kind: str, wanted: FileFilter) -> None:
        self._kind, self._wanted = kind, wanted
        self._found: dict[bytes, Entry] = {}

    def add(self, name: bytes, size: int, mtime_ns: int, token: int) -> None:
        """Add a member, if its name is safe."""
        if name.startswith(b"/") or b".." in name.split(b"/"):
            self.skip(f"{self._kind} member with an absolute name or `..`")
        elif not (key := clean_key(name)) or b"\0" in key:
            self.skip(f"{self._kind} member without a name, or with NUL in it")
        else:
            self._found.pop(key, None)  # the later one takes the later place too
            self._found[key] = Entry(key, size, mtime_ns, token)

    def skip(self, reason: str) -> None:
        """Count a member that is left out."""
        self._wanted.skipped[reason] += 1

    def entries(self, key: bytes) -> Iterator[Entry]:
        """The members that are wanted. `key` is that of the archive."""
        prefix = start_of_keys(key)
        for name, (_, size, mtime_ns, token) in self._found.items():
            if self._wanted.takes_member(name):
                yield Entry(prefix + name, size, mtime_ns, token)
