"""Answers from stored embeddings: vectors and labels in, numbers and tables out. Nothing here decodes an image or needs a model.

Where to begin reading:
    1. `vectors.stored`: how an analysis opens its files (`open_vectors`), and `Vectors`, which reads them in blocks.
    2. `outliers`: the shortest complete analysis. `search`, `dedup`, `cluster` and `curate` have the same form.
    3. `probes`: classifiers. `knn`, `linear` and `linear_dense` train and test, `probe` and `dense_head` are saved results.
    4. `export`: one module for each file format of other tools. `dataset`: a file as a torch dataset. `tables`: CSV with a row per image.

The tools are in `vectors`: `labels` (the classes of images), `compatible` (may two files be compared?), `neighbours` (exact nearest
neighbours), `faiss_index` (approximate ones), `near_pairs` (all pairs above a cosine), `representatives` (which images of a group to keep),
`kmeans` (clusters) and `covariance` (principal axes).

To add an analysis, write one file with three imports: `open_vectors` opens and checks the files, `dino_extract.options.checked` checks
the arguments, and `dino_extract.results.Result` is the base of the frozen dataclass that the function returns. Then name the function
in `dino_extract/__init__.pyi`, and add a command to `cli`, a page to `docs` and a test to `tests/analysis`.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
