"""Whether a weights file is what it should be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dino_extract.errors import WeightsError
from dino_extract.results import Result, shown
from dino_extract.weights.checkpoint import checkpoint_file, read_checkpoint
from dino_extract.weights.checksum import file_sha256
from dino_extract.weights.locate import Place, missing_error, present_places
from dino_extract.weights.registry import Checkpoint, checkpoints, find_checkpoint


@dataclass(frozen=True, repr=False)
class WeightsCheck(Result):
    """What a weights file turned out to be.

    Args:
        released: the model of the table of which this is a released file, or our conversion of one; None for others.
        problem: what is wrong with it, or None.
    """

    path: str
    sha256: str
    model: str | None = None
    layout: str | None = None
    parameters: int | None = None
    released: str | None = None
    problem: str | None = None

    def summary(self) -> str:
        """Path, and the problem if there is one."""
        return f"{shown(self.path)}, {self.problem or 'no problem'}"


def check_file(path: Path, expected: Checkpoint | None = None, place: Place | None = None) -> WeightsCheck:
    """Hash a weights file, read all of it, and check that it is complete, finite, undamaged, and of the model it should be.

    Args:
        path: a file, or a folder with `model.safetensors`.
        expected: the model it should be of.
        place: where it was found, which may tell the hash it should have.

    Raises:
        WeightsError: the file cannot be read at all.
    """
    path = checkpoint_file(path)
    sha256 = file_sha256(path)
    if place is not None and place.sha256 and sha256 not in place.sha256:
        return WeightsCheck(str(path), sha256, problem=f"SHA-256 is {sha256}, expected {' or '.join(place.sha256)}")
    try:
        found = read_checkpoint(path, expected)
    except WeightsError as error:
        return WeightsCheck(str(path), sha256, problem=error.message)
    origin = found.metadata.get("source_sha256") if place is not None and place.kind == "cache" else sha256
    released = next((checkpoint.name for checkpoint in checkpoints().values() if origin in checkpoint.known_sha256), None)
    problem = None
    if place is not None and place.kind == "cache" and (expected is None or released != expected.name):
        problem = "it was not made from a released file of this model"
    parameters = sum(math.prod(tensor.shape) for tensor in found.tensors.values())
    return WeightsCheck(str(path), sha256, found.name, found.layout, parameters, released, problem)


def check_model(checkpoint: Checkpoint) -> list[WeightsCheck]:
    """Check every file of a model of the table that is on this machine."""
    return [check_file(place.path, checkpoint, place) for place in present_places(checkpoint)]


def verify_weights(targets: Sequence[str] | None = None) -> list[WeightsCheck]:
    """Check files, and every file of models that is on this machine.

    Args:
        targets: names of models, or paths; None checks all models.

    Raises:
        WeightsError: there is no such model, or nothing of it is on this machine.
    """
    results: list[WeightsCheck] = []
    for target in targets or checkpoints():
        if targets and Path(target).exists():
            results.append(check_file(Path(target)))
            continue
        checkpoint = find_checkpoint(target)
        found = check_model(checkpoint)
        if targets and not found:
            raise missing_error(checkpoint, "checking does not download them")
        results += found
    return results
