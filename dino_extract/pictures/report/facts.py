"""Facts about a store for people: how it was made, what is in it, and which images failed."""

from __future__ import annotations

import json
import os
from typing import Any

from dino_extract.names import printable
from dino_extract.store import RaggedRows, Store

MAX_FAILURES_SHOWN = 1000  # more would make the page slow and help nobody

# attribute -> its name on the page
_LABELS = {
    "model": "Model",
    "weights": "Weights",
    "weights_sha256": "SHA-256 of the weights",
    "licence": "Licence of the weights",
    "tokens": "Tokens",
    "layers": "Layers",
    "compute_dtype": "Computed in",
    "store_dtype": "Stored as",
    "root": "Images from",
}


def how_it_was_made(store: Store) -> list[tuple[str, str]]:
    """(label, value) of every setting that the vectors depend on."""
    facts = [(label, str(store.attrs[name])) for name, label in _LABELS.items() if store.attrs.get(name) not in (None, "")]
    pixels: dict[str, Any] = json.loads(str(store.attrs.get("preprocessing", "{}")))
    if pixels:
        facts.append(("Pixels", f"{pixels.get('policy')}, {pixels.get('height')} x {pixels.get('width')}, {pixels.get('interpolation')}"))
    versions: dict[str, str] = json.loads(str(store.attrs.get("versions", "{}")))
    if versions:
        facts.append(("Versions", ", ".join(f"{package} {version}" for package, version in versions.items())))
    return facts


def what_is_in_it(store: Store) -> list[tuple[str, str]]:
    """(label, value): number of images, size of the file, shape of every dataset."""
    num_failed = len(store.all_paths) - len(store)
    facts = [
        ("File", f"{printable(os.path.basename(store.path))}, {os.path.getsize(store.path) / 1e6:,.1f} MB"),
        ("Images", f"{len(store):,} embedded" + (f", {num_failed:,} failed" if num_failed else ", none failed")),
    ]
    for name in store.names:
        rows = store[name]
        shape = "patch grids of different sizes" if isinstance(rows, RaggedRows) else " x ".join(f"{side:,}" for side in rows.shape)
        facts.append((name, f"{shape}, {rows.dtype}"))
    return facts


def failures(store: Store) -> list[tuple[str, str, str]]:
    """(path, kind, reason) of the first images that could not be embedded."""
    shown = store.failures[:MAX_FAILURES_SHOWN]
    return [(printable(each.path), each.status.name.lower().replace("_", " "), each.error) for each in shown]
