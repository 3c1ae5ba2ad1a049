"""An AnnData file: X, with the paths as names of the observations."""

from __future__ import annotations

import os

import anndata
import h5py
import pandas

from dino_extract.analysis.export.job import ExportJob


def write(job: ExportJob) -> list[str]:
    """Write the export and return its paths."""
    metadata, vectors = job.metadata, job.vectors
    index = pandas.Index(metadata.pop("path"), dtype=str)
    folder = pandas.Categorical([os.path.dirname(name) for name in index])
    observations = pandas.DataFrame({**metadata, "folder": folder}, index=index)
    variables = pandas.DataFrame(index=[f"f{column}" for column in range(vectors.dim)])
    empty = anndata.AnnData(obs=observations, var=variables, uns={"dino_extract": job.provenance})
    with job.written() as partial:
        empty.write_h5ad(partial)
        with h5py.File(partial, "r+") as file:  # anndata needs all of X in memory
            if "X" in file:
                del file["X"]
            matrix = file.create_dataset("X", (len(vectors), vectors.dim), job.dtype)
            matrix.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
            for first, block in job.blocks():
                matrix[first : first + len(block)] = block
    return [job.output]
