"""Global descriptors for hloc: a group for each image."""

from __future__ import annotations

import h5py

from dino_extract.analysis.export.job import ExportJob
from dino_extract.analysis.vectors.stored import unit


def write(job: ExportJob) -> list[str]:
    """Write the export and return its paths."""
    names, size = job.names, job.store.image_size
    with job.written() as partial, h5py.File(partial, "w") as file:
        for first, block in job.vectors.blocks(job.block_rows):
            for row, descriptor in enumerate(job.cast(unit(block).numpy()), first):  # hloc compares by inner product
                group = file.create_group(names[row])
                group.create_dataset("global_descriptor", data=descriptor)
                group.create_dataset("image_size", data=size[row, ::-1])  # width first
    return [job.output]
