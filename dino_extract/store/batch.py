"""One batch of results made ready for the file: failed rows become NaN, arrays become bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dino_extract.status import Status
from dino_extract.store.layout import ERROR_BYTES, Layout, RowDataset
from dino_extract.store.rows import Column

# One array with a row per image, or where ragged one array of patches per image.
BatchArray = NDArray[Any] | Sequence[NDArray[Any]]


@dataclass(frozen=True, eq=False)
class RowBatch:
    """The results of the model for some images. They belong to the writer, which may change the arrays.

    Args:
        rows: (B,) int64 row numbers.
        arrays: dataset name -> (B, ...) array, or where ragged a list of (patches, ...) arrays.
        status: (B,) uint8.
        errors: (B,) texts, empty where the status is OK.
        image_size: (B, 2) int32, height and width in pixels after orientation.
    """

    rows: NDArray[np.int64]
    arrays: Mapping[str, BatchArray]
    status: NDArray[np.uint8]
    errors: Sequence[str]
    image_size: NDArray[np.int32]

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes if isinstance(array, np.ndarray) else sum(each.nbytes for each in array) for array in self.arrays.values())


def check_batch(batch: RowBatch, layout: Layout, patches_per_row: NDArray[np.int64] | None) -> None:
    """Compare a batch with the layout.

    Raises:
        ValueError: a dataset is missing or too much, or an array has another shape.
    """
    expected = {dataset.name for dataset in layout.datasets}
    if batch.arrays.keys() != expected:
        raise ValueError(f"a batch needs the datasets {sorted(expected)}, got {sorted(batch.arrays)}")
    num_rows = len(batch.rows)
    if not len(batch.status) == len(batch.errors) == len(batch.image_size) == num_rows:
        raise ValueError(
            f"a batch of {num_rows} rows got {len(batch.status)} status, {len(batch.errors)} errors, {len(batch.image_size)} image sizes"
        )
    for dataset in layout.datasets:
        array = batch.arrays[dataset.name]
        if not dataset.is_ragged:
            shapes, wanted = [np.shape(array)], [(num_rows, *dataset.shape)]
        else:
            assert patches_per_row is not None, "a ragged layout has patch counts"
            shapes, wanted = [np.shape(each) for each in array], [(int(count), *dataset.shape) for count in patches_per_row[batch.rows]]
        if shapes != wanted:
            raise ValueError(f"`{dataset.name}` of a batch has shape {shapes}, expected {wanted}")


def columns_of(batch: RowBatch, layout: Layout) -> list[Column]:
    """The bytes of a batch, a column per row dataset in stored order.

    Rows whose status is not OK get NaN in every float dataset and zero in the others; rows that hold infinity or NaN get
    `Status.NON_FINITE`.
    """
    status = batch.status.astype(np.uint8)
    errors = [_error_bytes(text) if text else b"" for text in batch.errors]
    arrays = {dataset.name: _stored(batch.arrays[dataset.name], dataset) for dataset in layout.datasets}
    for dataset in layout.datasets:
        for row in np.flatnonzero((status == Status.OK) & ~_finite_rows(arrays[dataset.name])).tolist():
            status[row] = Status.NON_FINITE
            errors[row] = _error_bytes(f"model: FloatingPointError: `{dataset.name}` is not finite")
    for array in arrays.values():
        for row in np.flatnonzero(status != Status.OK).tolist():
            values = array[row] if isinstance(array, list) else array[row : row + 1]
            values[...] = np.nan if values.dtype.kind == "f" else 0
    columns = [_column(arrays[dataset.name]) for dataset in layout.datasets]
    texts = np.array(errors, dtype=f"S{ERROR_BYTES}")
    return [*columns, _column(np.ascontiguousarray(batch.image_size, "<i4")), _column(status), _column(texts)]


def _stored(array: BatchArray, dataset: RowDataset) -> NDArray[Any] | list[NDArray[Any]]:
    if dataset.is_ragged:
        return [_owned(each, dataset.numpy_dtype) for each in array]
    return _owned(np.asarray(array), dataset.numpy_dtype)


def _owned(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore"):  # what does not fit the stored type becomes infinity, and is found by _finite_rows
        return np.require(array, dtype, ["C", "W"])


def _finite_rows(array: NDArray[Any] | list[NDArray[Any]]) -> NDArray[np.bool_]:
    """(B,) whether every number of the row is finite."""
    if isinstance(array, list):
        return np.array([bool(_finite_rows(each[None])[0]) for each in array], bool)
    flat = array.reshape(len(array), -1)
    if array.dtype.kind != "f" or flat.size == 0:
        return np.ones(len(array), bool)
    if array.dtype.itemsize != 2:
        return np.asarray(np.isfinite(flat).all(axis=1))
    # numpy looks at float16 one by one; as integers, infinity and NaN are the largest positive and the largest negative numbers
    return np.asarray((flat.view(np.int16).max(axis=1) < 0x7C00) & (flat.view(np.uint16).max(axis=1) < 0xFC00))


def _column(array: NDArray[Any] | list[NDArray[Any]]) -> Column:
    if isinstance(array, list):
        bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum([each.nbytes for each in array], dtype=np.int64)])
        return Column(memoryview(b"".join(each.tobytes() for each in array)), bounds, None)
    item_nbytes = array.nbytes // max(len(array), 1)
    content = array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")
    return Column(content, np.arange(len(array) + 1) * item_nbytes, item_nbytes)


def _error_bytes(text: str) -> bytes:
    """`text` as UTF-8, cut at a character boundary to what `/error` holds."""
    whole = text.replace("\0", "").encode("utf-8", errors="backslashreplace")
    return whole[:ERROR_BYTES].decode("utf-8", errors="ignore").encode("utf-8")
