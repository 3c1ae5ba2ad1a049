"""Labels of embedded images: from their folders, from a CSV file, or from a dataset in an HDF5 file."""

from __future__ import annotations

import csv
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Union

import numpy as np
from numpy.typing import NDArray

from dino_extract.analysis.vectors.stored import require_images
from dino_extract.errors import ConfigError, DinoExtractWarning, SourceError, StoreError
from dino_extract.names import path_from_text, printable
from dino_extract.options import as_list
from dino_extract.status import Status
from dino_extract.store import Store, read_dataset

_HINT = "give labels with `--labels FILE.csv` (columns path,label), or choose the folder with `--label-depth`"

_HEADER = {"path", "label"}
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}

LabelSource = Union[str, "os.PathLike[str]", Mapping[str, Any], Sequence[Any], NDArray[Any], None]


def labels_of(store: Store, source: LabelSource = None, depth: int = 1) -> list[str]:
    """(n,) the label of each embedded image; "" for an image without one.

    Args:
        store: the embedded images.
        source: one of
            None for the names of the folders,
            a CSV file with a path and a label in each line,
            `FILE.h5:DATASET` with one label for each row of the store,
            a list or array of such labels, where None and NaN are images without a label,
            a dictionary, or a column of pandas with paths as its index.
        depth: with the names of the folders, how many folders above the image: 1 is the folder it is in.

    Raises:
        StoreError: the store is unfinished, or has no embedded image.
        ConfigError: no image has a label, or the numbers of labels and rows differ.
        SourceError: the file cannot be read.
    """
    require_images(store)
    labels = _labels(store, _by_index(source), depth)
    if not any(labels):
        raise _no_labels(store, source, depth)
    return labels


def _labels(store: Store, source: Any, depth: int) -> list[str]:
    text = os.fspath(source) if isinstance(source, (str, os.PathLike)) else None
    if source is None:
        return folder_labels(store.paths, depth)
    if isinstance(source, Mapping):
        return _labels_by_path(store, {str(path): _label(value) for path, value in source.items()}, "the labels")
    if text is None:
        of_any_type = np.array([*as_list(source), None], object)[:-1]  # None keeps it one-dimensional
        return _row_labels(store, of_any_type if getattr(source, "ndim", 1) == 1 else np.asarray(source), "the labels")
    if ".h5:" in text or ".hdf5:" in text:
        path, _, dataset = text.rpartition(":")
        return dataset_labels(store, path, dataset)
    return csv_labels(store, text)


def _no_labels(store: Store, source: Any, depth: int) -> ConfigError:
    images = f"the {len(store):,} images of `{store.path}`"
    if source is None and depth == 1:
        return ConfigError(
            f"no labels: {images} are directly in the source, not in a folder for each class",
            hint="`--labels FILE.csv` with `path,label` lines, or embed the folder above",
        )
    name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else "labels"
    missing = f"no folder {depth} above them" if source is None else f"no label in `{name}`"
    return ConfigError(f"no labels: {images} have {missing}", hint=_HINT)


def _by_index(source: Any) -> Any:
    """A dictionary of labels by path from a column of pandas with paths as its index; any other source unchanged."""
    is_column = hasattr(source, "to_dict") and source.ndim == 1
    return source.to_dict() if is_column and isinstance(next(iter(source.index), None), str) else source


def folder_labels(paths: Sequence[str], depth: int = 1) -> list[str]:
    """(n,) the name of the folder `depth` levels above each image, "" where there is none.

    `folder_labels(["train/cat/1.jpg"])` is `["cat"]`; with `depth=2` it is `["train"]`.

    Raises:
        ConfigError: the depth is below 1.
    """
    if depth < 1:
        raise ConfigError(f"`label_depth` counts folders above the image from 1, got {depth}")
    folders = (path.split("/")[:-1] for path in paths)
    return [parts[-depth] if len(parts) >= depth else "" for parts in folders]


def csv_labels(store: Store, csv_path: str) -> list[str]:
    """(n,) the label that a CSV file gives each embedded image, "" where it gives none.

    The file has a header with the columns `path` and `label`, or no header and the path and label first. The separator is the comma,
    semicolon or tab that gives a header or a path in the first line. Paths are as in the store, or have `./` or the embedded folder in
    front: its name, or its absolute path.

    Raises:
        SourceError: the file cannot be read, has fewer than two columns, gives a path two labels, or has none of the paths.
    """
    separator, lines = _read_csv(csv_path, store.paths)
    columns = (0, 1)
    if lines and (names := _names(lines[0])).keys() >= _HEADER:
        columns = names["path"], names["label"]
        lines = lines[1:]
    label_of: dict[str, str] = {}
    for line in lines:
        if len(line) <= max(columns):
            raise SourceError(
                f"labels `{csv_path}` must have a path and a label in every line, got `{printable(os.fsencode(separator.join(line)))}`",
                hint=f"cells are divided by {_SEPARATORS[separator]}, as in the first line",
            )
        path, label = line[columns[0]], line[columns[1]].strip()
        if label_of.setdefault(path, label) != label:
            raise SourceError(f"labels `{csv_path}` give `{path}` two labels, `{label_of[path]}` and `{label}`")
    return _labels_by_path(store, label_of, f"labels `{csv_path}`")


def _read_csv(csv_path: str, paths: Sequence[str]) -> tuple[str, list[list[str]]]:
    """The separator of a CSV file, and the cells of its lines."""
    try:
        with open(csv_path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            separator = _separator(file.readline(), paths)
            file.seek(0)
            lines = [line for line in csv.reader(file, delimiter=separator) if line]
    except (OSError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SourceError(f"labels `{csv_path}` cannot be read: {reason}") from error
    if any("\0" in cell for line in lines for cell in line):
        raise SourceError(f"labels `{csv_path}` are not text", hint="give a CSV file, or a dataset of an HDF5 file as `FILE.h5:DATASET`")
    return separator, lines


def _separator(first_line: str, paths: Sequence[str]) -> str:
    """The separator of the cells: spreadsheets write semicolons in countries with a decimal comma."""
    rows = {separator: next(csv.reader([first_line], delimiter=separator), []) for separator in _SEPARATORS}
    names = set(map(os.path.basename, paths))

    def fitness(separator: str) -> tuple[bool, bool, bool]:
        row = rows[separator]
        return _names(row).keys() >= _HEADER, row[:1] != [] and os.path.basename(row[0]) in names, len(row) > 1

    return max(rows, key=fitness)


def _names(header: Sequence[str]) -> dict[str, int]:
    """The position of each column by its name in lower case."""
    return {name.strip().lower(): column for column, name in enumerate(header)}


def _labels_by_path(store: Store, label_of: Mapping[str, str], name: str) -> list[str]:
    """(n,) the label of each embedded image, "" where there is none."""
    root = os.fsdecode(path_from_text(str(store.attrs["root"])))
    found = (_paths_in(label_of, store.all_paths, folder) for folder in ("", f"{root}/", f"{os.path.basename(root)}/"))
    of_rows = next(filter(any, found), [""] * len(store.all_paths))
    named = [of_rows[row] for row in store_rows(store).tolist()]
    if label_of and not any(of_rows):
        raise SourceError(
            f"{name} name none of the embedded images: they have `{next(iter(label_of))}`, the file has `{store.paths[0]}`",
            hint="write paths as in the dataset `/paths`, relative to the source, in the first column or in a column `path`",
        )
    num_unlabelled = named.count("")
    if num_unlabelled and (unknown := label_of.keys() - set(of_rows)):
        warnings.warn(
            f"{name} have {len(unknown):,} paths that are not images of `{store.path}`, such as `{min(unknown)}`; "
            f"{num_unlabelled:,} images of it, such as `{store.paths[named.index('')]}`, have no label",
            DinoExtractWarning,
            stacklevel=5,
        )
    return [label_of[path] if path else "" for path in named]


def _paths_in(label_of: Mapping[str, str], paths: Sequence[str], folder: str) -> list[str]:
    """(n,) the name of each path in the labels, where they have this folder in front, or "" if it is missing."""
    # Our own tables have `./` in front of some paths (`table_path`).
    return [next((name for name in (folder + path, f"./{folder}{path}") if name in label_of), "") for path in paths]


def dataset_labels(store: Store, path: str, dataset: str) -> list[str]:
    """(n,) the labels in a dataset of an HDF5 file that has a row for each row of the store, failed images included.

    Raises:
        SourceError: the file or the dataset cannot be read.
        ConfigError: the numbers of labels and rows differ.
    """
    try:
        values = read_dataset(path, dataset)
    except StoreError as error:
        hint = error.hint if os.path.exists(path) else None  # otherwise the hint is about folders to write to
        raise SourceError(f"labels `{path}:{dataset}` cannot be read: {error.message}", hint=hint) from error
    return _row_labels(store, values, f"labels `{path}:{dataset}`")


def _row_labels(store: Store, values: NDArray[Any], name: str) -> list[str]:
    """(n,) the labels of the embedded images, from the labels of all rows or of the embedded images only."""
    if values.shape == (len(store.all_paths),):
        values = values[store_rows(store)]
    elif values.shape != (len(store),):
        raise ConfigError(
            f"{name} have shape {values.shape}, `{store.path}` has {len(store.all_paths):,} rows",
            hint="give one column of a pandas table, with the paths as its index: `table.set_index('path')['label']`"
            if values.ndim == 2
            else "give one label for each row of `/paths`, in its order",
        )
    return [_label(value) for value in values.tolist()]


def _label(value: Any) -> str:
    try:
        is_missing = value is None or bool(value != value)
    except TypeError:  # the NA of pandas, which cannot be compared with itself
        is_missing = True
    if is_missing:
        return ""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def store_rows(store: Store) -> NDArray[np.int64]:
    """(n,) int64 rows of the file with an embedded image."""
    return np.flatnonzero(store.all_status == Status.OK).astype(np.int64)


def encode(labels: Sequence[str], classes: Sequence[str]) -> NDArray[np.int64]:
    """(n,) int64 position of each label in `classes`, -1 for "" and for labels that are not in it."""
    code_of = {name: code for code, name in enumerate(classes)}
    return np.array([code_of.get(label, -1) for label in labels], np.int64)


def classes_of(labels: Sequence[str]) -> tuple[str, ...]:
    """The different labels, sorted.

    Raises:
        ConfigError: there are fewer than two.
    """
    classes = tuple(sorted(set(labels) - {""}))
    if len(classes) < 2:
        count = sum(bool(label) for label in labels)
        got = f"all {count:,} labelled images have the label `{classes[0]}`" if classes else "no image has a label"
        raise ConfigError(f"classification needs two classes or more, but {got}", hint=_HINT)
    return classes


def require_known(labels: Sequence[str], classes: Sequence[str]) -> None:
    """Check that every test label is also a training label.

    Raises:
        ConfigError: no training image has a test label.
    """
    unknown = sorted(set(labels) - {""} - set(classes))
    if unknown:
        shown = ", ".join(f"`{name}`" for name in unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        raise ConfigError(f"{len(unknown)} test labels occur in no training image: {shown}", hint=_HINT)
