"""Time and memory of `dedup` and `search` on many vectors, as the commands that a user runs, with what they find and miss.

    python benchmarks/scale.py ROWS [--folder build/scale] [--json FILE]

The vectors are made: 384 numbers in float16, 4,000 clusters, and 5 % of the rows are noisy copies of others with a cosine of about 0.97;
other pairs are well below the threshold of 0.93. Ten more copies, in a file of their own, are the queries. What can be found is known:

    dedup: recall is the share of the copies found with their originals, precision the share of dropped images that are such a pair.
    search: recall is the share of the ten nearest by exact search that an index finds too.

Wall and processor seconds and peak memory are those of the process of each command. The files stay in the folder, 770 MB for a million rows
and 1.2 GB more for the indexes, and are used again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

DIM = 384
CLUSTERS = 4000
SPREAD = 0.7  # of a cluster: two of its images have a cosine of about 1 / (1 + 0.7 ** 2) = 0.67
COPIES = 0.05
COPY_COSINE = 0.97
THRESHOLD = 0.93
QUERIES = 10
TOP = 10
BLOCK = 1 << 16


@dataclass(frozen=True)
class Figures:
    """One command: seconds by the clock and of the processor, peak memory in MB, and shares 0..1 where they apply."""

    command: str
    wall_s: float
    processor_s: float
    memory_mb: float
    recall: float | None = None
    precision: float | None = None


def towards(start: np.ndarray, cosine: float, draw: np.random.Generator) -> np.ndarray:
    """(n, D) vectors of length 1 with about this cosine to each of `start`, which have length 1 too."""
    noise = draw.standard_normal(start.shape, np.float32)
    noise -= (noise * start).sum(axis=1, keepdims=True) * start
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    return cosine * start + np.sqrt(1 - cosine**2) * noise


def made_blocks(num_rows: int, originals: np.ndarray) -> Iterator[np.ndarray]:
    """Vectors of all rows in blocks (b, D) float32 of length 1: first those of clusters, then a copy of each of `originals`."""
    centres = np.random.default_rng(1).standard_normal((CLUSTERS, DIM), np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    num_plain = num_rows - len(originals)
    kept = np.empty((len(originals), DIM), np.float16)
    for first in range(0, num_plain, BLOCK):
        draw = np.random.default_rng([2, first])
        count = min(BLOCK, num_plain - first)
        block = towards(centres[draw.integers(0, CLUSTERS, count)], 1 / np.sqrt(1 + SPREAD**2), draw)
        wanted = np.flatnonzero((originals >= first) & (originals < first + count))
        kept[wanted] = block[originals[wanted] - first]
        yield block
    for first in range(0, len(kept), BLOCK):
        block = kept[first : first + BLOCK].astype(np.float32)
        yield towards(block / np.linalg.norm(block, axis=1, keepdims=True), COPY_COSINE, np.random.default_rng([3, first]))


def key(row: int) -> str:
    """The path of a made image."""
    return f"{row % 1000:03}/{row:09}.jpg"


def write_store(path: Path, num_rows: int, blocks: Iterator[np.ndarray], rows: np.ndarray) -> None:
    """A finished file of the project's own format.

    Args:
        path: the file.
        num_rows: rows in all.
        blocks: vectors (b, D), in the order of `rows`.
        rows: (num_rows,) numbers that name the images; the file is in the order of their keys.
    """
    from dino_extract.images.preprocess import Preprocess
    from dino_extract.store import Layout, RowDataset, RowTable, Status, open_writer

    keys = [key(row).encode() for row in rows.tolist()]
    order = np.array(sorted(range(num_rows), key=keys.__getitem__))
    place = np.empty(num_rows, np.int64)
    place[order] = np.arange(num_rows)
    attrs = {
        "model": "vits14",
        "weights_sha256": "made",
        "preprocessing": json.dumps(Preprocess().as_record()),
        "tokens": "cls",
        "layers": "",
        "root": "/made",
    }
    zeros = np.zeros(num_rows, np.int64)
    table = RowTable([keys[row] for row in order.tolist()], zeros, zeros)
    with open_writer(path, table, Layout((RowDataset("features", (DIM,), "float16"),), attrs, ("model",))) as writer:
        first = 0
        for block in blocks:
            wanted = np.argsort(place[first : first + len(block)])
            writer.write(
                place[first : first + len(block)][wanted],
                {"features": block[wanted].astype(np.float16)},
                status=[Status.OK] * len(block),
                errors=[""] * len(block),
                image_size=np.full((len(block), 2), 224, np.int32),
            )
            first += len(block)
        writer.finish()


def made(num_rows: int, folder: Path) -> tuple[Path, Path, np.ndarray]:
    """The file, the file of queries, and the original of each copy; the files are made if they are not there."""
    num_copies = int(num_rows * COPIES)
    originals = np.random.default_rng(0).permutation(num_rows - num_copies)[:num_copies]
    bank, queries = folder / f"{num_rows}.h5", folder / f"{num_rows}-queries.h5"
    if not bank.exists():
        folder.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        write_store(bank, num_rows, made_blocks(num_rows, originals), np.arange(num_rows))
        print(f"{bank}: {bank.stat().st_size / 1e6:,.0f} MB in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    if not queries.exists():
        first = next(made_blocks(num_rows, originals))
        draw = np.random.default_rng(4)
        block = towards(first[draw.permutation(len(first))[:QUERIES]], COPY_COSINE, draw)
        write_store(queries, QUERIES, iter([block]), np.arange(num_rows, num_rows + QUERIES))
    return bank, queries, originals


def run(words: Sequence[str], output: Path) -> tuple[Any, Figures]:
    """What `dino-extract WORDS --json` prints, and its figures, under the name of the command without files."""
    program = [str(Path(sys.executable).parent / "dino-extract"), *words, "--json"]
    started = time.perf_counter()
    with open(output, "wb") as out:
        child = os.posix_spawn(program[0], program, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, out.fileno(), 1)])
        _, status, used = os.wait4(child, 0)
    wall = time.perf_counter() - started
    if status:
        raise SystemExit(f"`dino-extract {' '.join(words)}` ended with {os.waitstatus_to_exitcode(status)}")
    name = " ".join(word for word in words if not word.endswith(".h5"))
    figures = Figures(name, round(wall, 2), round(used.ru_utime + used.ru_stime, 2), round(used.ru_maxrss / 1024))
    return json.loads(output.read_text()), figures


def measure(num_rows: int, folder: Path) -> list[Figures]:
    """Every command once; with an index twice, built and kept."""
    bank, queries, originals = made(num_rows, folder)
    output = folder / "output.json"
    _, floor = run(["search", str(queries), str(queries)], output)
    table = [replace(floor, command=f"search among {QUERIES} rows (what any command costs)")]

    found, figures = run(["dedup", str(bank), "--threshold", str(THRESHOLD)], output)
    pairs = {frozenset((key(row), key(num_rows - len(originals) + copy))) for copy, row in enumerate(originals.tolist())}
    dropped = [frozenset((kept["path"], path)) for group in found["groups"] for kept in group["kept"] for path in kept["drop"]]
    right = len(pairs & set(dropped))
    table.append(replace(figures, recall=right / max(len(pairs), 1), precision=right / max(len(dropped), 1)))

    search = ["search", str(bank), str(queries), "--top", str(TOP), "--index"]
    exact, figures = run([*search, "exact"], output)
    table.append(replace(figures, recall=1.0))
    wanted = {(result["query"], hit["path"]) for result in exact for hit in result["hits"]}
    for kind in ("hnsw", "ivfpq"):
        index = Path(f"{bank}.features.{kind}.faiss")
        index.unlink(missing_ok=True)
        for state in ("built", "kept"):
            result, figures = run([*search, kind], output)
            hits = {(each["query"], hit["path"]) for each in result for hit in each["hits"]}
            name = f"{figures.command} ({state}, {index.stat().st_size / 1e6:,.0f} MB)"
            table.append(replace(figures, command=name, recall=len(wanted & hits) / len(wanted)))
    output.unlink()
    return table


def machine() -> str:
    """Processor, cores and versions, for the record."""
    cpus = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "numpy", "h5py", "faiss-cpu"))
    return f"{len(os.sched_getaffinity(0))} cores of {cpus[0] if cpus else platform.machine()}, {packages}, {time.strftime('%Y-%m-%d')}"


def main() -> None:
    """Read arguments, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=int)
    parser.add_argument("--folder", type=Path, default=Path("build/scale"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    table = measure(options.rows, options.folder)
    print(f"{options.rows:,} rows; {machine()}\n")
    print("| command | wall s | processor s | peak memory MB | recall | precision |")
    print("|---|---|---|---|---|---|")
    for row in table:
        shares = " | ".join("" if share is None else f"{share:.2%}" for share in (row.recall, row.precision))
        print(f"| {row.command} | {row.wall_s:,.1f} | {row.processor_s:,.1f} | {row.memory_mb:,.0f} | {shares} |")
    if options.json:
        options.json.write_text(
            json.dumps({"rows": options.rows, "machine": machine(), "commands": [asdict(row) for row in table]}, indent=2)
        )


if __name__ == "__main__":
    main()
