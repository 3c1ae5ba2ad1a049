"""The folder of a run: its configuration, figures, plot, checkpoints and the model that `embed --weights` takes."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dino_extract.backbone import BackboneConfig
from dino_extract.errors import ConfigError, RunBusyError, WeightsError
from dino_extract.files import FileLock, replace_atomically
from dino_extract.finetuning.checkpoint import Checkpoints
from dino_extract.finetuning.config import FinetuneConfig
from dino_extract.finetuning.plot import plot_run
from dino_extract.finetuning.presets import differences, read_config, to_json
from dino_extract.names import quoted
from dino_extract.weights import save_checkpoint
from dino_extract.weights.files import read_tensor_file

MODEL = "model.safetensors"  # of the newest checkpoint; what the folder stands for
BEST_MODEL = "best.safetensors"  # of the best look

# What may differ between a run and its continuation: it changes neither the images nor the mathematics.
FREE_TO_CHANGE = (
    "device",
    "workers",
    "log_steps",
    "checkpoint_steps",
    "checkpoint_blocks",
    "compile",
    "offline",
    "output",
    "monitor.every_steps",
)


def deciding_differences(one: FinetuneConfig, other: FinetuneConfig) -> dict[str, tuple[Any, Any]]:
    """The dotted names of the settings that differ and make another run of it, with both values."""
    return {name: values for name, values in differences(one, other).items() if name not in FREE_TO_CHANGE}


class RunFolder:
    """Writes what a run gives; only the first rank has one. A context manager: within it no other process may train into the folder.

    Args:
        path: the folder, made where it is missing.
        config: complete; an earlier run in the folder must have the same.

    Raises:
        ConfigError: on entering, the folder holds a run with another configuration, or cannot be written.
        RunBusyError: on entering, another process is training into it.
    """

    def __init__(self, path: Path, config: FinetuneConfig) -> None:
        self.path = path
        self.checkpoints = Checkpoints(path / "checkpoints")
        self._config = config
        self._lock: FileLock | None = None
        self._lines: list[dict[str, Any]] = []
        self._tensorboard: Any = None

    def __enter__(self) -> RunFolder:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = self._take_lock()
        except OSError as error:
            raise ConfigError(f"`{self.path}` cannot be the folder of a run: {error.strerror}", hint="choose another `-o`") from error
        try:
            self._refuse_another_run()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._lock is not None:
            self._lock.release()

    def begin(self) -> None:
        """Write the configuration, which claims the folder. Called late, so that a run that fails during start-up claims nothing."""
        _write(self.path / "config.json", to_json(self._config))
        self._tensorboard = _tensorboard(self.path)

    def continue_from(self, step: int) -> None:
        """Keep the figures up to `step` and drop those of steps that were not saved and will be done again."""
        metrics = self.path / "metrics.jsonl"
        if metrics.exists():
            lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
            self._lines = [line for line in lines if line["step"] <= step]
            _write(metrics, "".join(json.dumps(line) + "\n" for line in self._lines))

    def add(self, figures: Mapping[str, Any]) -> None:
        """Append one line of figures, which have a `step`."""
        self._lines.append(dict(figures))
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")
        if self._tensorboard is not None:
            for name, value in figures.items():
                if isinstance(value, int | float):
                    self._tensorboard.add_scalar(name, value, figures["step"])

    def plot(self) -> None:
        """Draw the figures so far into `progress.png`."""
        plot_run(self._lines, self.path / "progress.png")

    def export(
        self, file: str, weights: Mapping[str, Tensor], config: BackboneConfig, *, name: str, licence: str, record: Mapping[str, Any]
    ) -> None:
        """Write a file that `embed --weights` takes, from keys `backbone.*` of an average network."""
        backbone = {key.removeprefix("backbone."): tensor for key, tensor in weights.items() if key.startswith("backbone.")}
        save_checkpoint(self.path / file, backbone, config, name=name, licence=licence, record=record)

    def exported_steps(self) -> int | None:
        """How many steps made the weights in `MODEL`; None where it is missing or damaged."""
        try:
            metadata = read_tensor_file(self.path / MODEL).metadata
        except WeightsError:
            return None
        return None if metadata is None else metadata.get("steps")

    def note_unreadable(self, failures: Sequence[tuple[str, str]]) -> None:
        """Write which images could not be read, and why."""
        if failures:
            _write(self.path / "unreadable.tsv", "".join(f"{key}\t{error}\n" for key, error in sorted(failures)))

    def _take_lock(self) -> FileLock:
        try:
            return FileLock(self.path / ".lock")
        except BlockingIOError:
            raise RunBusyError(f"another process is training into `{self.path}`", hint="wait for it, or choose another `-o`") from None

    def _refuse_another_run(self) -> None:
        path = self.path / "config.json"
        if not path.exists():
            return
        if changed := deciding_differences(read_config(path), self._config):
            listed = ", ".join(f"{name} was {old} and is now {new}" for name, (old, new) in changed.items())
            teacher = "" if self._config.distill is None else f" --distill {quoted(self._config.distill)}"
            raise ConfigError(
                f"`{self.path}` holds a run with another configuration: {listed}",
                hint="repeat the first command unchanged to continue it, or choose another `-o`; for more steps start a new run from it "
                f"with `--weights {quoted(str(self.path))} --keep-heads{teacher}`",
            )


def _write(path: Path, text: str) -> None:
    with replace_atomically(path, "file", overwrite=True) as draft:
        Path(draft).write_text(text, encoding="utf-8")


def _tensorboard(path: Path) -> Any:
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter  # only where it is installed

    return SummaryWriter(str(path / "tensorboard"))
