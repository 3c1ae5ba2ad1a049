"""Verify a file: the checksums of every byte, and some rows embedded again."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dino_extract.embedding.job import prepare_again
from dino_extract.embedding.pipeline import embedded_batches
from dino_extract.errors import StoreError
from dino_extract.names import counted, printable
from dino_extract.results import Result
from dino_extract.status import Status
from dino_extract.store import Store, VerifyReport, open_store, verify_store

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from dino_extract.config import EmbedOptions


@dataclass(frozen=True)
class Recomputed:
    """How rows that were embedded again compare with the stored ones.

    Args:
        rows: number of rows compared.
        missing: rows drawn whose image was deleted or changed.
        max_difference: largest |difference| over all datasets, relative to the norm of the stored token.
        min_cosine: smallest cosine between a stored and a recomputed token.
        worst: path of the image with that cosine.
    """

    rows: int
    missing: int
    max_difference: float
    min_cosine: float
    worst: str


@dataclass(frozen=True, repr=False)
class Verification(Result):
    """The result of `verify`; `recomputed` is None if no row was asked for, or the file has no embedded one."""

    integrity: VerifyReport
    recomputed: Recomputed | None
    json_with = ("is_good",)

    @property
    def is_good(self) -> bool:
        """No damaged byte, and every recomputed token close to the stored one."""
        return self.integrity.is_intact and (self.recomputed is None or self.recomputed.min_cosine > MIN_COSINE)

    def summary(self) -> str:
        """Good or not, and how many rows were checked."""
        return f"{'good' if self.is_good else 'damaged or different'}, {counted(self.integrity.num_rows, 'row')}"

    def text(self) -> str:
        """The findings for people."""
        integrity, again = self.integrity, self.recomputed
        lines = []
        if integrity.num_rows:  # else the file cannot be opened
            counts = f"{len(integrity.damaged_rows):,} damaged, {integrity.num_uncommitted:,} not written yet"
            lines.append(f"checksums: {counted(integrity.num_rows, 'row')}, {counts}")
        if integrity.header_damage:
            lines.append(f"damaged: {integrity.header_damage}")
        lines += [f"damaged: row {row:,}, {printable(name)}" for row, name in integrity.damaged_rows]
        if again is not None:
            lines.append(
                f"embedded again: {counted(again.rows, 'row')} ({counted(again.missing, 'image')} deleted or changed), largest difference "
                f"{again.max_difference:.1e} of the token's length, smallest cosine {again.min_cosine:.6f} ({printable(again.worst)})"
            )
        return "\n".join(lines)


MIN_COSINE = 0.999  # bfloat16 on another machine stays above; another model or preprocessing falls far below


def verify(path: str, *, rows: int = 8, seed: int = 0, **changes: Unpack[EmbedOptions]) -> Verification:
    """Check every checksum of a file, and embed some random rows again.

    Args:
        path: the HDF5 file.
        rows: how many rows to embed again, drawn without replacement; 0 needs neither images nor model.
        seed: seed of the draw.
        changes: fields of `EmbedConfig` to set differently from the file, such as `weights` where the checkpoint has moved.

    Raises:
        StoreError: not a file of ours, or made with other weights than those found now.
    """
    integrity = verify_store(path)
    if rows == 0 or not integrity.is_intact:
        return Verification(integrity, None)
    with open_store(path) as store:
        if len(store) == 0:
            return Verification(integrity, None)
        return Verification(integrity, _recompute(store, rows, seed, changes))


def _recompute(store: Store, count: int, seed: int, changes: EmbedOptions) -> Recomputed:
    chosen = np.sort(np.random.default_rng(seed).permutation(len(store))[:count])
    job = prepare_again(store, chosen.tolist(), **changes)
    if job is None:
        message = f"none of the {len(chosen)} images drawn is still at `{store.attrs['root']}` with its size and time"
        raise StoreError(message, hint="`--rows 0` checks the file alone")
    paths = store.paths
    row_of = {paths[row]: row for row in chosen.tolist()}
    differences, cosines, names = [], [], []
    for batch, arrays in embedded_batches(job, np.arange(len(job.manifest))):
        for position, row in enumerate(batch.rows.tolist()):
            if batch.status[position] != Status.OK:
                continue
            stored_row = row_of[os.fsdecode(job.manifest.keys[row])]
            for name in store.names:
                want = np.asarray(store[name][stored_row], np.float64).reshape(-1, arrays[name][position].shape[-1])
                got = np.asarray(arrays[name][position], np.float64).reshape(want.shape)
                norms = np.linalg.norm(want, axis=1)
                differences.append((np.abs(got - want).max(axis=1) / norms).max())
                cosines.append(((got * want).sum(axis=1) / (norms * np.linalg.norm(got, axis=1))).min())
                names.append(paths[stored_row])
    if not cosines:
        raise StoreError("none of the images drawn can be decoded any more", hint="`--rows 0` checks the file alone")
    worst = int(np.argmin(cosines))
    compared = len(set(names))
    return Recomputed(compared, len(chosen) - compared, float(max(differences)), float(cosines[worst]), names[worst])
