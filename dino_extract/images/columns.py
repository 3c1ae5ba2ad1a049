"""The images found so far, one array for each column of the manifest, because there may be millions."""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence

import numpy as np

from dino_extract.images.containers import Entry, FileFilter
from dino_extract.images.manifest import ListedContainer, Manifest


class Columns:
    """Grows by one image at a time, in the order in which they are found."""

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self._size, self._mtime_ns, self._token, self._container = array("q"), array("q"), array("q"), array("i")
        self._containers: list[ListedContainer] = []

    def add(self, entry: Entry, container: int = -1) -> None:
        """Add an image. `container` is a number from `add_container`, or -1 for a file of its own."""
        key, size, mtime_ns, token = entry
        self.keys.append(key)
        self._size.append(size)
        self._mtime_ns.append(mtime_ns)
        self._token.append(token)
        self._container.append(container)

    def add_container(self, container: ListedContainer) -> int:
        """Add a container. Returns the number that its images refer to."""
        self._containers.append(container)
        return len(self._containers) - 1

    def drop_same_files(self, root: bytes) -> None:
        """Keep the first of several keys of the same file (`a.jpg` and `/photos/a.jpg`). A link to a file counts as a file of its own."""
        seen: set[bytes] = set()
        real_folders: dict[bytes, bytes] = {}
        rows = []
        for row, key in enumerate(self.keys):
            folder, base = os.path.split(os.path.join(root, key))
            if folder not in real_folders:
                real_folders[folder] = os.path.realpath(folder)  # `..` behind a link is not the folder that the text says
            name = os.path.join(real_folders[folder], base)
            if name not in seen:
                seen.add(name)
                rows.append(row)
        if len(rows) < len(self.keys):
            self._keep(rows)

    def _keep(self, rows: Sequence[int]) -> None:
        self.keys = [self.keys[row] for row in rows]
        for column in (self._size, self._mtime_ns, self._token, self._container):
            column[:] = array(column.typecode, (column[row] for row in rows))

    def manifest(self, root: bytes, sources: tuple[bytes, ...], wanted: FileFilter) -> Manifest:
        """Everything found, sorted by key."""
        order = sorted(range(len(self.keys)), key=self.keys.__getitem__)
        rows = np.array(order, np.int64)
        return Manifest(
            root,
            sources,
            [self.keys[row] for row in order],
            file_size=np.frombuffer(self._size, np.int64)[rows],
            file_mtime_ns=np.frombuffer(self._mtime_ns, np.int64)[rows],
            containers=tuple(self._containers),
            container=np.frombuffer(self._container, np.int32)[rows],
            token=np.frombuffer(self._token, np.int64)[rows],
            skipped=dict(wanted.skipped),
            unread=wanted.unread,
        )
