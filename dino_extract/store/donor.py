"""Earlier work on the same file, and which of its rows may be kept."""

from __future__ import annotations

import json
import os
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dino_extract.errors import StoreError
from dino_extract.names import path_from_text
from dino_extract.status import Status
from dino_extract.store import disk
from dino_extract.store.header import DamagedHeaderError, Header, open_hdf5, read_header
from dino_extract.store.layout import Layout, RowDataset
from dino_extract.store.rows import intact_rows

_OVERWRITE_HINT = "`--overwrite` replaces it, `-o` chooses another file"


class Donor:
    """A finished file or a run in progress, open for reading its rows.

    Args:
        path: the file.

    Raises:
        StoreError: it is not a store, or its header is damaged.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        with open_hdf5(path) as file:
            self.header: Header = read_header(file, path)
            self.status: NDArray[np.uint8] = file["status"][:]
        _ = self.header.areas  # a file rewritten by another program is refused here
        with disk.explained(f"read `{path}`"):
            self.fd = os.open(path, os.O_RDONLY)
        try:
            if not self.header.has_intact_layout:
                message = f"the header of `{path}` is damaged"
                raise DamagedHeaderError(message, hint="restore a copy of the file, or embed again with `--overwrite`")
            self.crcs = self.header.read_crcs(self.fd)
        except BaseException:
            self.close()
            raise
        self._is_verified = False

    def __len__(self) -> int:
        return len(self.header.keys)

    @property
    def usable(self) -> NDArray[np.bool_]:
        """(N,) rows that are committed; after `verify`, rows that also read back as they were written."""
        return self._intact if self._is_verified else self.crcs != 0

    def verify(self) -> None:
        """Read every row and compare it with its checksum."""
        self._is_verified = True
        _ = self._intact

    @cached_property
    def _intact(self) -> NDArray[np.bool_]:
        with disk.explained(f"read `{self.path}`"):
            return intact_rows(self.fd, self.header.areas, self.crcs)

    def reusable(self, *, retry_failed: bool) -> NDArray[np.bool_]:
        """(N,) usable rows that would not be computed again if their image has not changed.

        A vanished image is tried again whenever it is back; other failures only if `retry_failed`.
        """
        done = self.status == Status.OK if retry_failed else self.status != Status.VANISHED
        return np.asarray(self.usable & done)

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)


def differences(header: Header, layout: Layout, other: str = "you asked for") -> list[str]:
    """The settings in which a file differs from a run, so that its rows cannot be kept; one line each.

    Args:
        header: of the file.
        layout: of what it is compared with.
        other: what that is, for the lines.
    """
    lines = []
    for name in layout.signature:
        lines += _attr_differences(name, header.attrs.get(name), layout.attrs.get(name), other)
    has, wants = ({each.name: each for each in datasets} for datasets in (header.datasets, layout.row_datasets))
    for name in [*wants, *(name for name in has if name not in wants)] if not lines else []:  # datasets follow from the settings
        if has.get(name) != wants.get(name):
            lines.append(f"dataset {name}: the file has {_described(has.get(name))}, {other} {_described(wants.get(name))}")
    if not lines and list(has) != list(wants):
        lines.append(f"order of datasets: the file has {', '.join(has)}, {other} {', '.join(wants)}")
    return lines


def root_differs(header: Header, layout: Layout) -> bool:
    """Whether the paths of a file lead to other places than those of the run; paths that are absolute lead to the same from anywhere."""
    old, new = (path_from_text(str(attrs.get("root", ""))) for attrs in (header.attrs, layout.attrs))
    if old == new or all(key.startswith(b"/") for key in header.keys):
        return False
    return not (os.path.exists(old) and os.path.exists(new) and os.path.samefile(old, new))


def is_of_other_images(header: Header, layout: Layout) -> bool:
    """Whether equal paths in a file and in the run may name different images: the folder of the file is another, and still there.

    Where it is not, it was moved, and the run has its new place.
    """
    return root_differs(header, layout) and os.path.exists(path_from_text(str(header.attrs.get("root", ""))))


def check_same(donor: Donor, layout: Layout) -> None:
    """Refuse to continue a file that was made with other settings, or of another folder.

    Raises:
        StoreError: lists every difference.
    """
    lines = differences(donor.header, layout)
    if lines:
        what = f"`{donor.path}` was made with other settings"
        raise StoreError("\n  ".join([f"{what}:", *lines]), hint=_OVERWRITE_HINT)
    if is_of_other_images(donor.header, layout):
        message = f"the paths in `{donor.path}` are relative to `{donor.header.attrs['root']}`, those given to `{layout.attrs['root']}`"
        hint = (
            "embed what is new alone with another `-o`, then `dino-extract join` makes one file of the two; `--overwrite` replaces this one"
        )
        raise StoreError(message, hint=hint)


def _attr_differences(name: str, has: object, wants: object, other: str) -> list[str]:
    if has == wants:
        return []
    old, new = _parsed(has), _parsed(wants)
    if old and new:
        keys = [*new, *(key for key in old if key not in new)]
        return [line for key in keys for line in _attr_differences(f"{name}.{key}", old.get(key), new.get(key), other)]
    return [f"{name}: the file has {_shown(has)}, {other} {_shown(wants)}"]


def _parsed(value: object) -> dict[str, object]:
    """The object a JSON attribute holds, or {} for any other value."""
    if isinstance(value, dict):
        return value
    if isinstance(value, str) and value.startswith("{"):
        try:
            parsed = json.loads(value)
        except ValueError:
            return {}
        return parsed if isinstance(parsed, dict) else {}
    return {}


def _shown(value: object) -> str:
    return "nothing" if value in (None, "") else str(value)


def _described(dataset: RowDataset | None) -> str:
    if dataset is None:
        return "nothing"
    shape = " x ".join(map(str, dataset.shape)) or "1"
    return f"{shape} {dataset.dtype}{' per patch' if dataset.is_ragged else ''}"
