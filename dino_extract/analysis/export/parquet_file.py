"""A Parquet file with a row for each image."""

from __future__ import annotations

import pyarrow
from pyarrow import parquet

from dino_extract.analysis.export.job import ExportJob


def write(job: ExportJob) -> list[str]:
    """Write the export and return its paths."""
    element = {"float32": pyarrow.float32(), "float16": pyarrow.float16()}[job.dtype]
    vector = pyarrow.list_(element, job.vectors.dim)
    fields = [("path", pyarrow.string()), ("height", pyarrow.int32()), ("width", pyarrow.int32()), ("vector", vector)]
    schema = pyarrow.schema(fields, metadata=job.provenance)
    names, size = job.names, job.store.image_size
    with job.written() as partial, open(partial, "wb") as file, parquet.ParquetWriter(file, schema) as writer:
        for first, block in job.blocks():
            rows = slice(first, first + len(block))
            values = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(block.ravel()), type=vector)
            writer.write_table(pyarrow.table([names[rows], size[rows, 0], size[rows, 1], values], schema=schema))
    return [job.output]
