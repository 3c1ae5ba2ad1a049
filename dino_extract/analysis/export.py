"""Embeddings in the file formats of other tools; images that could not be embedded are left out, and nothing is read whole.

| format | what is written | read by |
|---|---|---|
| npy | `X.npy` (n, D) and `X.parquet` with a row of metadata for each | numpy, faiss, autofaiss, embedding-reader |
| parquet | path, height, width, vector | pandas, polars, DuckDB, embedding-atlas |
| csv | path, height, width, f0, f1, ... | everything |
| h5ad | AnnData: X, paths as observation names | scanpy, anndata |
| hloc | group for each image with `global_descriptor` of length 1, `image_size` (w, h) | hloc `pairs_from_retrieval` |
| ann-benchmarks | train, test, exact neighbors and angular distances | ann-benchmarks |
| bags | one file for each image: `features` (patches, D), `coords` (patches, 2) | CLAM, TRIDENT, MIL toolkits |
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import h5py  # other tools' HDF5 layouts; our own is the business of the store alone
import numpy as np
from numpy.typing import NDArray

from dino_extract.analysis.tables import table_path
from dino_extract.analysis.vectors.neighbours import nearest
from dino_extract.analysis.vectors.stored import StoreSource, Vectors, opened, require_images, stored_vectors, unit
from dino_extract.analysis.writing import replacing, writing
from dino_extract.errors import ConfigError, StoreError
from dino_extract.images.preprocess import Preprocess
from dino_extract.names import file_stem, printable
from dino_extract.options import checked
from dino_extract.store import RaggedRows, Store

ExportFormat = Literal["npy", "parquet", "csv", "h5ad", "hloc", "ann-benchmarks", "bags"]
FloatType = Literal["float32", "float16"]

EXPORT_FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)
_SUFFIX_OF: dict[ExportFormat, str] = {
    "npy": ".npy",
    "parquet": ".parquet",
    "csv": ".csv",
    "h5ad": ".h5ad",
    "hloc": ".hloc.h5",
    "ann-benchmarks": ".ann.hdf5",
    "bags": "-bags",
}
_INDEX_HEADER = "slide_id,path\n"
_BLOCK_ROWS = 4096  # 6 MB of ViT-S vectors
ANN_QUERIES = 1000  # held out of `train`, or a tenth of the images where that is less
ANN_NEIGHBOURS = 100  # as in the published ann-benchmarks files


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    Args:
        paths: files, or the folder of bags.
        format: one of the export formats.
        rows: images in them.
        left_out: images of the store that have no embedding.
        prefixed: paths written with `./` in front, so that no spreadsheet runs them as formulas; of csv and the index of bags.
    """

    paths: list[str]
    format: ExportFormat
    rows: int
    left_out: int
    prefixed: int = 0


@dataclass(frozen=True, eq=False)
class _Job:
    """One export: what the writers below are given."""

    store: Store
    dataset: str
    dtype: FloatType
    output: str
    overwrite: bool

    @property
    def vectors(self) -> Vectors:
        """(n, D) vectors, unread."""
        return stored_vectors(self.store, self.dataset)

    @property
    def names(self) -> list[str]:
        """(n,) paths as text that every format takes."""
        return [printable(path) for path in self.store.paths]

    def blocks(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """The vectors in pieces (b, D) of the wanted type, with the number of the first."""
        for first, block in self.vectors.blocks(_BLOCK_ROWS):
            yield first, self.cast(block)

    def cast(self, block: NDArray[Any]) -> NDArray[Any]:
        """Numbers in the wanted type.

        Raises:
            ConfigError: float16 cannot hold one of them.
        """
        with np.errstate(over="ignore"):
            cast: NDArray[Any] = block.astype(self.dtype)
        if not np.isfinite(cast).all():
            message = f"`{self.dataset}` has values that are not finite or above 65504, which float16 cannot hold"
            raise ConfigError(message, hint="export with `--dtype float32`") if self.dtype == "float16" else StoreError(message)
        return cast


def export(
    store: StoreSource,
    output: str | os.PathLike[str] | None = None,
    format: ExportFormat | None = None,  # noqa: A002  # the word that every user looks for
    *,
    dataset: str | None = None,
    dtype: FloatType = "float32",
    overwrite: bool = False,
) -> ExportResult:
    """Write the embeddings of a finished store in the file format of another tool.

    Args:
        store: the file, or its path.
        output: file, or folder for `bags`; by default beside the store under its name.
        format: see the table above; by default what the suffix of `output` says.
        dataset: which tokens; by default `features`, for `bags` `patch_features`.
        dtype: of the numbers written.
        overwrite: replace what is there.

    Raises:
        ConfigError: an unknown format or type, tokens that do not fit it, or something is already there.
        StoreError: an unfinished or empty store, or one without these tokens.
    """
    chosen = _choose_format(output, format)
    checked("dtype", FloatType, dtype)
    with opened(store) as file:
        require_images(file)
        path = os.fspath(output) if output is not None else os.path.splitext(file.path)[0] + _SUFFIX_OF[chosen]
        tokens = dataset or ("patch_features" if chosen == "bags" else "features")
        job = _Job(file, tokens, dtype, path, overwrite)
        paths = _WRITERS[chosen](job)
        prefixed = sum(name != table_path(name) for name in job.names) if chosen in ("csv", "bags") else 0
        return ExportResult(paths, chosen, len(file), len(file.all_paths) - len(file), prefixed)


def _choose_format(output: str | os.PathLike[str] | None, wanted: str | None) -> ExportFormat:
    suffix = os.path.splitext(os.fspath(output))[1] if output is not None else ""
    said = {".npy": "npy", ".parquet": "parquet", ".csv": "csv", ".h5ad": "h5ad"}.get(suffix)
    if wanted is None:
        wanted = said
        if wanted is None and suffix not in ("", ".h5", ".hdf5"):  # those say nothing, or could be either of two
            raise ConfigError(f"`{suffix}` is no format this writes", hint=f"`--to` takes {', '.join(EXPORT_FORMATS)}")
    if wanted not in EXPORT_FORMATS:
        got = f"got `{wanted}`" if wanted else "got nothing that says which"
        raise ConfigError(f"`--to` takes {', '.join(EXPORT_FORMATS)}, {got}", hint="for example `--to parquet`")
    if said not in (None, wanted):
        raise ConfigError(f"`{output}` has the suffix of `{said}`, but `--to` says `{wanted}`", hint="leave one of them out")
    return wanted


@contextlib.contextmanager
def _written(path: str, overwrite: bool) -> Iterator[str]:
    """As `replacing`, unless there is something already."""
    if os.path.lexists(path) and not overwrite:
        raise ConfigError(f"`{path}` is already there", hint="`--overwrite` replaces it, `-o` chooses another name")
    with replacing(path, "export") as partial:
        yield partial


def _metadata(job: _Job) -> dict[str, Any]:
    size = job.store.image_size
    return {"path": job.names, "height": size[:, 0], "width": size[:, 1]}


def _write_npy(job: _Job) -> list[str]:
    pyarrow, parquet = _import_pyarrow()
    vectors, metadata_path = job.vectors, os.path.splitext(job.output)[0] + ".parquet"
    with _written(metadata_path, job.overwrite) as metadata_file, _written(job.output, job.overwrite) as partial:
        table = np.lib.format.open_memmap(partial, "w+", np.dtype(job.dtype), (len(vectors), vectors.dim))
        for first, block in job.blocks():
            table[first : first + len(block)] = block
        table.flush()
        with open(metadata_file, "wb") as file:  # pyarrow takes no path that is not UTF-8, and one with a colon for an address
            parquet.write_table(pyarrow.table(_metadata(job)), file)
    return [job.output, metadata_path]


def _write_parquet(job: _Job) -> list[str]:
    pyarrow, parquet = _import_pyarrow()
    element = {"float32": pyarrow.float32(), "float16": pyarrow.float16()}[job.dtype]
    vector = pyarrow.list_(element, job.vectors.dim)
    fields = [("path", pyarrow.string()), ("height", pyarrow.int32()), ("width", pyarrow.int32()), ("vector", vector)]
    schema = pyarrow.schema(fields, metadata=_provenance(job.store))
    names, size = job.names, job.store.image_size
    with _written(job.output, job.overwrite) as partial, open(partial, "wb") as file, parquet.ParquetWriter(file, schema) as writer:
        for first, block in job.blocks():
            rows = slice(first, first + len(block))
            values = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(block.ravel()), type=vector)
            writer.write_table(pyarrow.table([names[rows], size[rows, 0], size[rows, 1], values], schema=schema))
    return [job.output]


def _write_csv(job: _Job) -> list[str]:
    names, size = job.names, job.store.image_size.tolist()
    is_half = job.store[job.dataset].dtype == np.float16 or job.dtype == "float16"
    texts = _half_texts(job.dtype) if is_half else None
    with _written(job.output, job.overwrite) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        file.write(",".join(["path", "height", "width", *(f"f{column}" for column in range(job.vectors.dim))]) + "\n")
        for first, block in job.blocks():
            # The shortest text that reads back as the same number of the type written.
            numbers = block.astype("U32") if texts is None else texts[block.astype(np.float16).view(np.uint16)]
            for row, line in enumerate(numbers.tolist(), first):
                file.write(f"{_quoted(names[row])},{size[row][0]},{size[row][1]},{','.join(line)}\n")
    return [job.output]


def _quoted(path: str) -> str:
    """Always quoted: a spreadsheet that cuts at semicolons must not find a formula in the middle of a path."""
    return '"' + table_path(path).replace('"', '""') + '"'


def _half_texts(dtype: FloatType) -> NDArray[Any]:
    """(65536,) the text of every float16 number, by its bits: looked up, 200,000 rows of 384 take 38 s instead of 103 s.

    As float32, the text is so exact that readers with float64, such as pandas, find the stored number too.
    """
    numbers = np.arange(65536, dtype=np.uint16).view(np.float16)
    return (numbers if dtype == "float16" else numbers.astype(np.float64)).astype("U32").astype(object)


def _write_h5ad(job: _Job) -> list[str]:
    try:
        import anndata  # costs a second, and only this format needs it
        import pandas
    except ImportError as error:
        raise _missing("anndata", "h5ad") from error
    metadata, vectors = _metadata(job), job.vectors
    index = pandas.Index(metadata.pop("path"), dtype=str)
    folder = pandas.Categorical([os.path.dirname(name) for name in index])
    observations = pandas.DataFrame({**metadata, "folder": folder}, index=index)
    variables = pandas.DataFrame(index=[f"f{column}" for column in range(vectors.dim)])
    empty = anndata.AnnData(obs=observations, var=variables, uns={"dino_extract": _provenance(job.store)})
    with _written(job.output, job.overwrite) as partial:
        empty.write_h5ad(partial)
        with h5py.File(partial, "r+") as file:  # anndata would want all of X in memory
            if "X" in file:
                del file["X"]
            matrix = file.create_dataset("X", (len(vectors), vectors.dim), job.dtype)
            matrix.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
            for first, block in job.blocks():
                matrix[first : first + len(block)] = block
    return [job.output]


def _write_hloc(job: _Job) -> list[str]:
    names, size = job.names, job.store.image_size
    with _written(job.output, job.overwrite) as partial, h5py.File(partial, "w") as file:
        for first, block in job.vectors.blocks(_BLOCK_ROWS):
            for row, descriptor in enumerate(job.cast(unit(block).numpy()), first):  # hloc compares by inner product
                group = file.create_group(names[row])
                group.create_dataset("global_descriptor", data=descriptor)
                group.create_dataset("image_size", data=size[row, ::-1])  # width first
    return [job.output]


def _write_ann_benchmarks(job: _Job) -> list[str]:
    vectors = job.vectors
    num_queries = min(ANN_QUERIES, len(vectors) // 10)
    if num_queries == 0:
        raise ConfigError(f"ann-benchmarks wants queries besides a training set, {len(vectors)} images are too few", hint="10 are enough")
    is_query = np.zeros(len(vectors), bool)
    is_query[np.random.default_rng(0).choice(len(vectors), num_queries, replace=False)] = True
    queries, train = vectors[np.flatnonzero(is_query)], vectors.take(np.flatnonzero(~is_query))
    similarity, neighbours = nearest(queries, train, ANN_NEIGHBOURS)
    with _written(job.output, job.overwrite) as partial, h5py.File(partial, "w") as file:
        file.attrs.update({"type": "dense", "distance": "angular", "dimension": vectors.dim, "point_type": "float"})
        stored = file.create_dataset("train", (len(train), vectors.dim), job.dtype)
        for first, block in train.blocks(_BLOCK_ROWS):
            stored[first : first + len(block)] = job.cast(block)
        file["test"] = job.cast(queries)
        file["neighbors"] = neighbours.astype(np.int32)
        file["distances"] = 1 - similarity
    return [job.output]


def _write_bags(job: _Job) -> list[str]:
    rows = job.store[job.dataset]
    if not isinstance(rows, RaggedRows) and rows.ndim != 4:
        raise ConfigError(f"bags are made of patch tokens, `{job.dataset}` has one vector per image", hint="use `--dataset patch_features`")
    if os.path.isdir(job.output) and os.listdir(job.output) and not job.overwrite:
        raise ConfigError(f"`{job.output}` is already there", hint="`--overwrite` replaces it, `-o` chooses another name")
    with writing(job.output, "folder"):
        os.makedirs(job.output, exist_ok=True)
    preprocess = Preprocess.from_record(json.loads(str(job.store.attrs["preprocessing"])))
    index, used = [], set[str]()
    for row, (path, size) in enumerate(zip(job.store.paths, job.store.image_size.tolist(), strict=True)):
        name = _unused(file_stem(os.path.splitext(path)[0]), row, used)
        with _written(os.path.join(job.output, f"{name}.h5"), overwrite=True) as partial, h5py.File(partial, "w") as file:
            _fill_bag(file, job, rows[row], preprocess, size, name)
        index.append((name, printable(path)))
    index_path = os.path.join(job.output, "index.csv")
    _remove_bags_but({name for name, _ in index}, index_path)
    with _written(index_path, overwrite=True) as partial, open(partial, "w", newline="", encoding="utf-8") as text:
        text.write(_INDEX_HEADER)
        text.writelines(f"{_quoted(name)},{_quoted(path)}\n" for name, path in index)
    return [job.output]


def _remove_bags_but(kept: set[str], index_path: str) -> None:
    """Remove what an earlier export wrote beside its index, and this one did not: who reads all bags of the folder would mix the two."""
    if not os.path.isfile(index_path):
        return
    with open(index_path, newline="", encoding="utf-8", errors="surrogateescape") as text:
        earlier = {line[0] for line in csv.reader(text)} if text.readline() == _INDEX_HEADER else set[str]()
    for name in earlier - kept:
        path = os.path.join(os.path.dirname(index_path), f"{name}.h5")
        if os.path.dirname(name) == "" and os.path.lexists(path):
            with writing(path, "bag"):
                os.unlink(path)


def _fill_bag(file: h5py.File, job: _Job, patches: NDArray[Any], preprocess: Preprocess, size: tuple[int, int], name: str) -> None:
    """One bag as TRIDENT writes it: names, types and attributes; `coords` are pixels (x, y) of the image as it is on disk."""
    height, width = patches.shape[:2]
    place = preprocess.placement(*size)
    y = (np.arange(height) * preprocess.patch + place.top) * size[0] / place.height
    x = (np.arange(width) * preprocess.patch + place.left) * size[1] / place.width
    coords = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    features = file.create_dataset("features", data=job.cast(patches.reshape(-1, patches.shape[-1])))
    features.attrs.update({"name": name, "encoder": str(job.store.attrs.get("model", ""))})
    places = file.create_dataset("coords", data=np.round(coords).astype(np.int64))
    patch_px = round(preprocess.patch * size[1] / place.width)
    places.attrs.update(
        {
            "name": name,
            "patch_size": patch_px,
            "patch_size_level0": patch_px,
            "overlap": 0,
            "level0_width": size[1],
            "level0_height": size[0],
        }
    )


def _unused(stem: str, row: int, used: set[str]) -> str:
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(row)))
    name = next(name for name in names if name.casefold() not in used)  # on some file systems `A.h5` is `a.h5`
    used.add(name.casefold())
    return name


def _provenance(store: Store) -> dict[str, str]:
    """How the vectors were made, as text."""
    wanted = ("model", "weights_sha256", "preprocessing", "tokens", "versions")
    return {name: str(store.attrs[name]) for name in wanted if name in store.attrs}


def _import_pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow  # 100 MB that only two formats need
        from pyarrow import parquet
    except ImportError as error:
        raise _missing("pyarrow", "npy and parquet") from error
    return pyarrow, parquet


def _missing(package: str, formats: str) -> ConfigError:
    return ConfigError(f"the package `{package}` is not installed, which {formats} needs", hint="pip install 'dino-extract[export]'")


_WRITERS: dict[ExportFormat, Callable[[_Job], list[str]]] = {
    "npy": _write_npy,
    "parquet": _write_parquet,
    "csv": _write_csv,
    "h5ad": _write_h5ad,
    "hloc": _write_hloc,
    "ann-benchmarks": _write_ann_benchmarks,
    "bags": _write_bags,
}
