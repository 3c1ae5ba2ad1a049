"""Write the embeddings of a store in the file format of another tool."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from dino_extract.analysis.export.formats import FormatName, choose_format
from dino_extract.analysis.export.job import BLOCK_ROWS, ExportJob, FloatType
from dino_extract.analysis.vectors.stored import StoreSource, opened, require_images
from dino_extract.options import checked
from dino_extract.results import Result, shown


@dataclass(frozen=True)
class ExportResult(Result):
    """The files that were written.

    Args:
        paths: files, or the folder of bags.
        format: name of the format.
        rows: number of images in them.
        left_out: number of images of the store without an embedding.
    """

    paths: list[str]
    format: FormatName
    rows: int
    left_out: int

    def summary(self) -> str:
        """Number of images, the format and the first path."""
        return f"{self.rows:,} images as {self.format}, {shown(self.paths[0])}"

    def table(self) -> list[dict[str, Any]]:
        """A row for each path."""
        return [{"path": path, "format": self.format, "rows": self.rows} for path in self.paths]


def export(
    store: StoreSource,
    output: str | os.PathLike[str] | None = None,
    format: FormatName | None = None,  # noqa: A002  # the word that every user looks for
    *,
    dataset: str | None = None,
    dtype: FloatType = "float32",
    overwrite: bool = False,
    block_rows: int = BLOCK_ROWS,
) -> ExportResult:
    """Write the embeddings of a finished store in the file format of another tool.

    Args:
        store: store, or path of one.
        output: file, or folder for `bags`. By default next to the store, under its name.
        format: npy, parquet, csv, h5ad, hloc, ann-benchmarks or bags. By default the suffix of `output` chooses.
        dataset: tokens to write. By default `features`, for `bags` `patch_features`.
        dtype: type of the written numbers.
        overwrite: replace an existing output.
        block_rows: number of vectors to read at a time.

    Raises:
        ConfigError: the format or type is unknown, the tokens do not fit it, or the output exists.
        StoreError: the store is unfinished or empty, or has no such tokens.
    """
    chosen = choose_format(output, format)
    checked("dtype", FloatType, dtype)
    write = chosen.writer()
    with opened(store) as file:
        require_images(file)
        path = os.fspath(output) if output is not None else os.path.splitext(file.path)[0] + chosen.suffix
        paths = write(ExportJob(file, dataset or chosen.dataset, dtype, path, overwrite, block_rows))
        return ExportResult(paths, chosen.name, len(file), len(file.all_paths) - len(file))
