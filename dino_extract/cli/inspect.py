"""`info` and `verify`: what is in a file, and whether it is as it was written."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dino_extract.errors import ExitCode, StoreError
from dino_extract.names import printable

if TYPE_CHECKING:
    from dino_extract.store import RaggedRows, Rows, Store

File = Annotated[str, typer.Argument(metavar="FILE.h5", help="A file made by `dino-extract embed`, finished or not.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


def info(
    path: File,
    failures: Annotated[bool, typer.Option("--failures", help="List only the failed images: path, status, error, with tabs.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a file holds and how it was made; while a run goes on, how far it is."""
    from dino_extract.store import open_store  # loads h5py, which `--help` must not wait for

    with open_store(path) as store:
        if failures:
            rows = [{"path": path, "status": status.name.lower(), "error": error} for path, status, error in store.failures]
            lines = json.dumps(rows, indent=2) if as_json else "\n".join("\t".join(map(printable, row.values())) for row in rows)
        else:
            facts = _facts(store)
            lines = (
                json.dumps(facts, indent=2)
                if as_json
                else "\n".join(f"{name:16}{printable(_text(value), raw_bytes=True)}" for name, value in facts.items())
            )
    if lines:
        typer.echo(lines)


def verify(
    path: File,
    rows: Annotated[int, typer.Option(min=0, help="Random rows to embed again; 0 checks the file alone.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw of rows.")] = 0,
    weights: Annotated[str | None, typer.Option(metavar="PATH", help="The checkpoint, if it has moved since.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Check every byte of a file against its checksums, then embed some rows again and report the largest difference.

    Ends with 1 if anything is damaged or different.
    """
    from dino_extract.embedding.verification import verify as run  # loads torch, which `--help` must not wait for

    changes = {"device": device} | ({"weights": weights} if weights else {})
    result = run(path, num_rows=rows, seed=seed, **changes)
    if as_json:
        typer.echo(json.dumps(asdict(result) | {"is_good": result.is_good}, indent=2))
    else:
        integrity = result.integrity
        counts = f"{len(integrity.damaged_rows):,} damaged, {integrity.num_uncommitted:,} not written yet"
        if integrity.num_rows:  # else the file cannot be opened
            typer.echo(f"checksums: {integrity.num_rows:,} rows, {counts}")
        if integrity.header_damage:
            typer.echo(f"damaged: {integrity.header_damage}")
        for row, name in integrity.damaged_rows:
            typer.echo(f"damaged: row {row:,}, {printable(name)}")
        if again := result.recomputed:
            typer.echo(
                f"embedded again: {again.rows:,} rows ({again.missing:,} images gone or changed), largest difference "
                f"{again.max_difference:.1e} of the token's length, smallest cosine {again.min_cosine:.6f} ({printable(again.worst)})"
            )
    if not result.is_good:
        raise typer.Exit(ExitCode.ERROR)


def _facts(store: Store) -> dict[str, Any]:
    attrs = store.attrs
    done, total = store.progress
    return {
        "file": store.path,
        "complete": store.is_complete,
        "rows": total,
        "done": done,
        **_update(store),
        "embedded": len(store),
        "failed": store.num_failed,
        "model": attrs["model"],
        "weights": attrs["weights"],
        "weights_sha256": attrs["weights_sha256"],
        "licence": attrs["licence"],
        "datasets": {name: _shape(store[name]) for name in store.names},
        "preprocessing": json.loads(attrs["preprocessing"]),
        "compute_dtype": attrs["compute_dtype"],
        "versions": json.loads(attrs["versions"]),
        "root": attrs["root"],
        "sources": json.loads(attrs["sources"]),
        **({"shard": attrs["shard"]} if "shard" in attrs else {}),
    }


def _update(store: Store) -> dict[str, Any]:
    """How far the run is that will replace a finished file."""
    from dino_extract.store import Store, part_path_of  # loaded by now

    part_path = part_path_of(store.path)
    if not os.path.lexists(part_path):
        return {}
    try:
        with Store(part_path) as part:
            done, rows = part.progress
    except StoreError as error:  # says nothing against the finished file, which is what was asked for
        return {"update": {"file": part_path, "error": error.message}}
    return {"update": {"done": done, "rows": rows, "file": part_path}}


def _shape(rows: Rows | RaggedRows) -> str:
    # A ragged dataset has as many patches in each row as its image's grid.
    return f"{rows.dtype} {tuple(rows.shape) if hasattr(rows, 'shape') else 'ragged'}"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
