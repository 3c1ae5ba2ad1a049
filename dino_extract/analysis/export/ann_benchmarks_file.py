"""A data set for ann-benchmarks: vectors, queries, and their exact neighbours."""

from __future__ import annotations

import h5py
import numpy as np

from dino_extract.analysis.export.job import ExportJob
from dino_extract.analysis.vectors.neighbours import nearest
from dino_extract.errors import ConfigError

ANN_QUERIES = 1000  # held out of `train`, or a tenth of the images where that is less
ANN_NEIGHBOURS = 100  # as in the published ann-benchmarks files


def write(job: ExportJob) -> list[str]:
    """Write the export and return its paths."""
    vectors = job.vectors
    queries_wanted = min(ANN_QUERIES, len(vectors) // 10)
    if queries_wanted == 0:
        raise ConfigError(f"ann-benchmarks needs queries and a training set, {len(vectors)} images are too few", hint="10 are enough")
    is_query = np.zeros(len(vectors), bool)
    is_query[np.random.default_rng(0).choice(len(vectors), queries_wanted, replace=False)] = True
    queries, train = vectors[np.flatnonzero(is_query)], vectors.take(np.flatnonzero(~is_query))
    similarity, neighbours = nearest(queries, train, ANN_NEIGHBOURS)
    with job.written() as partial, h5py.File(partial, "w") as file:
        file.attrs.update({"type": "dense", "distance": "angular", "dimension": vectors.dim, "point_type": "float"})
        stored = file.create_dataset("train", (len(train), vectors.dim), job.dtype)
        for first, block in train.blocks(job.block_rows):
            stored[first : first + len(block)] = job.cast(block)
        file["test"] = job.cast(queries)
        file["neighbors"] = neighbours.astype(np.int32)
        file["distances"] = 1 - similarity
    return [job.output]
