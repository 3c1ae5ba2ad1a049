"""An array of numpy, and a Parquet file with a row of metadata for each vector."""

from __future__ import annotations

import os

import numpy as np
import pyarrow
from pyarrow import parquet

from dino_extract.analysis.export.job import ExportJob


def write(job: ExportJob) -> list[str]:
    """Write the export and return its paths."""
    vectors, metadata_path = job.vectors, os.path.splitext(job.output)[0] + ".parquet"
    with job.written(metadata_path) as metadata_file, job.written() as partial:
        table = np.lib.format.open_memmap(partial, "w+", np.dtype(job.dtype), (len(vectors), vectors.dim))
        for first, block in job.blocks():
            table[first : first + len(block)] = block
        table.flush()
        with open(metadata_file, "wb") as file:  # pyarrow takes only UTF-8 paths, and reads one with a colon as an address
            parquet.write_table(pyarrow.table(job.metadata), file)
    return [job.output, metadata_path]
