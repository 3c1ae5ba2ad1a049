"""The table of export formats. It loads neither torch nor h5py, so that the command line can read it.

| format | content | read by |
|---|---|---|
| npy | `X.npy` (n, D) and `X.parquet` with a row of metadata for each vector | numpy, faiss, autofaiss, embedding-reader |
| parquet | path, height, width, vector | pandas, polars, DuckDB, embedding-atlas |
| csv | path, height, width, f0, f1, ... | everything |
| h5ad | AnnData: X, paths as observation names | scanpy, anndata |
| hloc | a group for each image with `global_descriptor` of length 1 and `image_size` (w, h) | hloc `pairs_from_retrieval` |
| ann-benchmarks | train, test, exact neighbors and angular distances | ann-benchmarks |
| bags | one file for each image: `features` (patches, D), `coords` (patches, 2) | CLAM, TRIDENT, MIL toolkits |
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dino_extract.errors import ConfigError

if TYPE_CHECKING:
    from dino_extract.analysis.export.job import ExportJob


FormatName = Literal["npy", "parquet", "csv", "h5ad", "hloc", "ann-benchmarks", "bags"]


@dataclass(frozen=True)
class Format:
    """One export format.

    Args:
        name: the word for `--to`.
        suffix: end of the default output path. A plain suffix such as `.csv` also chooses the format.
        module: module of this package with `write(job) -> list[str]`, which writes the export and returns the paths.
        needs: packages of the extra `export` that the format needs.
        dataset: the tokens that are written by default.
    """

    name: FormatName
    suffix: str
    module: str
    needs: tuple[str, ...] = ()
    dataset: str = "features"

    def writer(self) -> Callable[[ExportJob], list[str]]:
        """The function that writes the format.

        Raises:
            ConfigError: a package is not installed.
        """
        missing = [package for package in self.needs if importlib.util.find_spec(package) is None]
        if missing:
            raise ConfigError(
                f"the package `{missing[0]}` is not installed, which {self.name} needs", hint="pip install 'dino-extract[export]'"
            )
        write: Callable[[ExportJob], list[str]] = importlib.import_module(f"{__package__}.{self.module}").write
        return write


FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        Format("npy", ".npy", "npy_file", ("pyarrow",)),
        Format("parquet", ".parquet", "parquet_file", ("pyarrow",)),
        Format("csv", ".csv", "csv_file"),
        Format("h5ad", ".h5ad", "h5ad_file", ("anndata", "pandas")),
        Format("hloc", ".hloc.h5", "hloc_file"),
        Format("ann-benchmarks", ".ann.hdf5", "ann_benchmarks_file"),
        Format("bags", "-bags", "bags_folder", dataset="patch_features"),
    )
}
_KNOWN = ", ".join(FORMATS)


def choose_format(output: str | os.PathLike[str] | None, wanted: str | None) -> Format:
    """The format that is asked for by name, or by the suffix of the output.

    Raises:
        ConfigError: there is no such format, or the name and the suffix contradict each other.
    """
    suffix = os.path.splitext(os.fspath(output))[1] if output is not None else ""
    by_suffix = next((each.name for each in FORMATS.values() if each.suffix == suffix), None)
    if wanted is None:
        wanted = by_suffix
        if wanted is None and suffix not in ("", ".h5", ".hdf5"):  # these two could be either of two formats
            raise ConfigError(f"cannot export to `{suffix}`", hint=f"the formats are {_KNOWN}")
    if wanted not in FORMATS:
        got = f"got `{wanted}`" if wanted else "but neither it nor the suffix of the output chooses one"
        raise ConfigError(f"`format` must be one of {_KNOWN}, {got}", hint="for example `--to parquet`")
    if by_suffix not in (None, wanted):
        raise ConfigError(f"`{output}` has the suffix of `{by_suffix}`, but `format` is `{wanted}`", hint="leave one of them out")
    return FORMATS[wanted]
