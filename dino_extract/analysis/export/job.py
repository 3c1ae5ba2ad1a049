"""The parts of an export that the formats share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dino_extract.analysis.vectors.stored import Vectors, stored_vectors
from dino_extract.errors import ConfigError, StoreError
from dino_extract.files import replace_atomically
from dino_extract.names import printable
from dino_extract.store import Store

FloatType = Literal["float32", "float16"]
BLOCK_ROWS = 4096  # 6 MB of ViT-S vectors


@dataclass(frozen=True, eq=False)
class ExportJob:
    """One export, as the writers of the formats receive it.

    Args:
        store: the finished store.
        dataset: the tokens to write.
        dtype: type of the written numbers.
        output: file or folder to write.
        overwrite: replace an existing output.
        block_rows: number of vectors to read at a time.
    """

    store: Store
    dataset: str
    dtype: FloatType
    output: str
    overwrite: bool
    block_rows: int = BLOCK_ROWS

    @property
    def vectors(self) -> Vectors:
        """(n, D) vectors, not yet read."""
        return stored_vectors(self.store, self.dataset)

    @property
    def names(self) -> list[str]:
        """(n,) paths as text that every format can hold."""
        return [printable(path) for path in self.store.paths]

    def blocks(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """The vectors in blocks, as (number of the first row, (b, D) of the wanted type)."""
        for first, block in self.vectors.blocks(self.block_rows):
            yield first, self.cast(block)

    def cast(self, block: NDArray[Any]) -> NDArray[Any]:
        """Numbers in the wanted type.

        Raises:
            ConfigError: float16 cannot hold a value.
        """
        with np.errstate(over="ignore"):
            cast: NDArray[Any] = block.astype(self.dtype)
        if not np.isfinite(cast).all():
            message = f"`{self.dataset}` has values that are not finite or above 65504, which float16 cannot hold"
            raise ConfigError(message, hint="export with `--store-dtype float32`") if self.dtype == "float16" else StoreError(message)
        return cast

    @property
    def metadata(self) -> dict[str, Any]:
        """Path, height and width of each image, as columns."""
        size = self.store.image_size
        return {"path": self.names, "height": size[:, 0], "width": size[:, 1]}

    @property
    def provenance(self) -> dict[str, str]:
        """How the vectors were made, as text."""
        wanted = ("model", "weights_sha256", "preprocessing", "tokens", "versions")
        return {name: str(self.store.attrs[name]) for name in wanted if name in self.store.attrs}

    def written(self, path: str | None = None) -> AbstractContextManager[str]:
        """A temporary path that becomes `path`, by default the output, when the block ends."""
        return replace_atomically(self.output if path is None else path, "export", overwrite=self.overwrite)
