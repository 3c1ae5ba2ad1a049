"""The images of a run as a sorted list, and from a stored key back to its image."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dino_extract.errors import SourceError
from dino_extract.images.containers import FILE, Entry, FileFilter, ImageRef
from dino_extract.images.reading import CONTAINER_OF_KIND, container_at
from dino_extract.names import printable


class ListedContainer(NamedTuple):
    """An archive, or another file that holds images, when it was listed."""

    kind: str
    path: bytes  # absolute
    stamp: tuple[int, int] | None  # (bytes, mtime in ns)


@dataclass(frozen=True, eq=False)
class Manifest:
    """All images of a run, sorted by the bytes of their keys.

    `root` and a key are enough to find an image again (see `resolve`).
    """

    root: bytes  # absolute: the one folder or archive that was given, else the working directory
    sources: tuple[bytes, ...]  # as given, made absolute; `-` stands for a list on stdin
    keys: list[bytes]
    file_size: NDArray[np.int64]  # (N,) bytes
    file_mtime_ns: NDArray[np.int64]  # (N,)
    containers: tuple[ListedContainer, ...]  # those whose images are not files of their own
    container: NDArray[np.int32]  # (N,) index into `containers`, -1 for a file of its own
    token: NDArray[np.int64]  # (N,) where the image is in its container
    skipped: dict[str, int] = field(default_factory=dict)  # reason -> how many were left out
    unread: dict[bytes, str] = field(default_factory=dict)  # start of keys that may be missing -> what could not be read

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, row: int) -> ImageRef:
        key, size, number = self.keys[row], int(self.file_size[row]), int(self.container[row])
        if number < 0:
            return ImageRef(key, os.path.join(self.root, key), size=size)
        kind, path, stamp = self.containers[number]
        return ImageRef(key, path, kind, int(self.token[row]), size, stamp)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Manifest:
        """The manifest of some images, in the order of `rows`."""
        rows = np.asarray(rows, np.int64)
        return replace(
            self,
            keys=[self.keys[row] for row in rows.tolist()],
            file_size=self.file_size[rows],
            file_mtime_ns=self.file_mtime_ns[rows],
            container=self.container[rows],
            token=self.token[rows],
        )

    def shard(self, number: int, count: int) -> Manifest:
        """Part `number` of `count`, from 1. Parts have about as many images each, and no image moves when others are added."""
        return self.take([row for row, key in enumerate(self.keys) if zlib.crc32(key) % count == number - 1])


def manifest_of(root: bytes, images: Sequence[ImageRef]) -> Manifest:
    """A manifest of images that `resolve` has found, in their order. Their times are not known and are 0."""
    containers = tuple(dict.fromkeys(ListedContainer(image.kind, image.path, image.stamp) for image in images if image.kind != FILE))
    number_of = {(container.kind, container.path): number for number, container in enumerate(containers)}
    return Manifest(
        root=root,
        sources=(root,),
        keys=[image.key for image in images],
        file_size=np.array([image.size for image in images], np.int64),
        file_mtime_ns=np.zeros(len(images), np.int64),
        containers=containers,
        container=np.array([number_of.get((image.kind, image.path), -1) for image in images], np.int32),
        token=np.array([image.token for image in images], np.int64),
    )


def resolve(root: bytes, key: bytes, *, stamp: tuple[int, int] | None = None) -> ImageRef:
    """Where the image of a stored key is now, in a container too.

    Args:
        root: the manifest's root, absolute.
        key: the image's key in that manifest.
        stamp: the (bytes, mtime in ns) that it must still have; None accepts any.

    Raises:
        SourceError: there is no such file or member, or it has changed.
    """
    found = _look_up(root, key)
    if found is None:
        raise SourceError(f"`{printable(key)}` is no longer in `{printable(root)}`")
    ref, now = found
    if stamp not in (None, now):
        raise SourceError(f"`{printable(key)}` in `{printable(root)}` has changed")
    return ref


def _look_up(root: bytes, key: bytes) -> tuple[ImageRef, tuple[int, int]] | None:
    """The image, and its (bytes, mtime in ns)."""
    path = os.path.join(root, key)
    if os.path.isfile(path):
        info = os.stat(path)
        return ImageRef(key, path, size=info.st_size), (info.st_size, info.st_mtime_ns)
    for end in _ends_of_parents(path):
        head = path[:end]
        if os.path.isfile(head):
            info = os.stat(head)
            container = container_at(head, info.st_mode)
            stamp = info.st_size, info.st_mtime_ns
            if container is None or (entry := _index(container.kind, head, stamp).get(path[end + 1 :])) is None:
                return None
            return ImageRef(key, head, container.kind, entry.token, entry.size, stamp), (entry.size, entry.mtime_ns)
    return None


def _ends_of_parents(path: bytes) -> list[int]:
    """Where the names of the parents of a path end, the longest first.

    >>> _ends_of_parents(b"/a/b.tar/c")
    [8, 2]
    """
    return [place for place in range(len(path) - 1, 0, -1) if path[place] == ord("/")]


@lru_cache(maxsize=4)  # a few shards: their headers must not be read again for every image
def _index(kind: str, path: bytes, stamp: tuple[int, int]) -> dict[bytes, Entry]:
    return {entry.key: entry for entry in CONTAINER_OF_KIND[kind].entries(path, b"", FileFilter(suffixes=None))}
