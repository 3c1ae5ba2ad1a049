"""Training images in an order fixed by the seed, decoded ahead of the model, with the random numbers of their crops and masks.

Nothing has to be saved to continue a run: which image comes at which place, its crops and the masks are functions of the seed and the
place alone, whatever the number of workers, and together over all ranks whatever their number.

Dimension key: B images in the batch, S side of a decoded image, G = 2 global crops, N patches of a global crop.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dino_extract.errors import ConfigError, SourceError
from dino_extract.finetuning.augment import make_crops
from dino_extract.finetuning.config import CropConfig
from dino_extract.finetuning.crops import CropParams, draw_crops
from dino_extract.finetuning.masks import mask_batch
from dino_extract.finetuning.student_teacher import NUM_GLOBAL_CROPS, CropBatch
from dino_extract.images.decoder.parent import DecoderDiedError, DecoderProcess
from dino_extract.images.loader import Loader
from dino_extract.images.manifest import Manifest
from dino_extract.images.preprocess import Preprocess
from dino_extract.status import Status

CHUNK_ROWS = 1_000_000  # rows planned at a time; starting decoders costs half a second, so epochs of small folders share a plan
MAX_SUBSTITUTES = 100  # unreadable images in a row before the folder is called unreadable
_CROPS, _MASKS, _SUBSTITUTES, _ORDER = range(4)  # streams of random numbers of one seed


@dataclass(frozen=True)
class Share:
    """Which part of every global batch this process takes.

    Args:
        batch: images B of one forward pass on this process.
        accumulation: forward passes of one optimizer step.
        rank: number of this process.
        world_size: number of processes.
    """

    batch: int
    accumulation: int = 1
    rank: int = 0
    world_size: int = 1

    @property
    def micro_batch(self) -> int:
        """Images of one forward pass over all processes."""
        return self.batch * self.world_size

    @property
    def global_batch(self) -> int:
        """Images of one optimizer step over all processes."""
        return self.micro_batch * self.accumulation


@dataclass(frozen=True)
class Decoded:
    """The images of one forward pass and everything random about them, on the host.

    Args:
        pixels: (B, S, S, 3) uint8, RGB, whole images squashed to a square.
        global_params: of the global crops, arrays (B, 2, ...).
        local_params: of the local crops, arrays (B, L, ...).
        masks: (2 * B, N) bool.
        failures: row of each image that could not be read for it, and not before, and why.
    """

    pixels: NDArray[np.uint8]
    global_params: CropParams
    local_params: CropParams
    masks: Tensor
    failures: dict[int, str]

    def batch(self, crops: CropConfig, device: torch.device, *, hide: bool = True) -> CropBatch:
        """Crops cut and changed on `device`; without `hide` the student sees all patches and learns all of them."""
        pixels = torch.from_numpy(self.pixels)
        if device.type == "cuda":
            pixels = pixels.pin_memory()
        images = pixels.to(device, non_blocking=True).permute(0, 3, 1, 2)
        local = images.new_empty((0, 3, crops.local_crops_size, crops.local_crops_size), dtype=torch.float32)
        if crops.local_crops_number:
            local = make_crops(images, self.local_params, crops.local_crops_size)
        return CropBatch.make(make_crops(images, self.global_params, crops.global_crops_size), local, self.masks, hide=hide).to(device)


class Order:
    """Which image is at which place of the run: every epoch a permutation of its own, cut into full batches.

    Args:
        num_images: images there are.
        global_batch: images of one optimizer step; what is left of an epoch is left out, so no image comes twice in a batch.
        seed: of the run.

    Raises:
        ConfigError: fewer images than one batch.
    """

    def __init__(self, num_images: int, global_batch: int, seed: int) -> None:
        if num_images < global_batch:
            raise ConfigError(
                f"a batch takes {global_batch:,} images, there are {num_images:,}",
                hint=f"`--batch {num_images}` or less; `--accumulation` and further processes multiply it",
            )
        self.num_images, self.global_batch, self.seed = num_images, global_batch, seed
        self.steps_per_epoch = num_images // global_batch
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    def rows(self, step: int) -> NDArray[np.int64]:
        """The manifest rows of an optimizer step, (global_batch,)."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._permutation = epoch, np.random.default_rng((self.seed, _ORDER, epoch)).permutation(self.num_images)
        return self._permutation[place * self.global_batch : (place + 1) * self.global_batch]

    def my_rows(self, step: int, share: Share) -> NDArray[np.int64]:
        """This process's rows of an optimizer step, (accumulation, B)."""
        return self.rows(step).reshape(share.accumulation, share.world_size, share.batch)[:, share.rank]


class TrainingData:
    """Iterates over `Decoded` batches of the steps [first_step, last_step), prepared ahead in a thread; a context manager.

    Args:
        manifest: the images.
        order: which of them comes when.
        share: what this process takes of each step; each step gives `accumulation` batches.
        crops: crops and masks.
        patch_size: side in pixels of a patch.
        first_step: where to start, for a run that is continued.
        last_step: where to end.
        workers: decoder processes; 0 is one for each free CPU.
    """

    def __init__(
        self,
        manifest: Manifest,
        order: Order,
        share: Share,
        crops: CropConfig,
        patch_size: int,
        *,
        first_step: int,
        last_step: int,
        workers: int = 0,
    ) -> None:
        self._failures: dict[int, str] = {}  # row -> why it could not be read
        self._manifest, self._order, self._share, self._crops = manifest, order, share, crops
        self._grid = (crops.global_crops_size // patch_size,) * 2
        self._steps, self._workers = (first_step, last_step), workers
        self._options = Preprocess("squash", crops.decoded_side, crops.decoded_side, patch=1, fast_decode=True)
        self._ready: queue.Queue[Decoded | BaseException | None] = queue.Queue(maxsize=2)
        self._closed = threading.Event()
        self._substitutes: DecoderProcess | None = None
        self._thread = threading.Thread(target=self._prepare_all, name="training-data", daemon=True)
        self._thread.start()

    def __enter__(self) -> TrainingData:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._closed.set()
        self._thread.join()

    def __iter__(self) -> Iterator[Decoded]:
        while (item := self._ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def _prepare_all(self) -> None:
        try:
            first, last = self._steps
            steps_per_chunk = max(1, CHUNK_ROWS // (self._share.batch * self._share.accumulation))
            for start in range(first, last, steps_per_chunk):
                self._prepare_chunk(range(start, min(start + steps_per_chunk, last)))
            self._put(None)
        except BaseException as error:  # carried over to the consumer, who raises it
            self._put(error)
        finally:
            if self._substitutes is not None:
                self._substitutes.kill()
                self._substitutes.close()

    def _prepare_chunk(self, steps: range) -> None:
        rows = np.concatenate([self._order.my_rows(step, self._share).reshape(-1) for step in steps])
        with Loader(self._manifest, rows, self._options, batch=self._share.batch, workers=self._workers) as loader:
            for index, batch in enumerate(loader):
                step, micro = steps[index // self._share.accumulation], index % self._share.accumulation
                pixels, sizes = np.asarray(batch.pixels), batch.image_size
                places, num_known = self._places(step, micro), len(self._failures)
                for place in np.flatnonzero(batch.status != Status.OK):
                    self._failures[int(batch.rows[place])] = batch.errors[place]
                    pixels[place], sizes[place] = self._substitute(int(places[place]))
                found = dict(list(self._failures.items())[num_known:])
                if not self._put(self._decoded(pixels, sizes, places, step, micro, found)):
                    return

    def _places(self, step: int, micro: int) -> NDArray[np.int64]:
        """The places in the run of this process's images of one forward pass, (B,)."""
        first = (step * self._share.accumulation + micro) * self._share.micro_batch + self._share.rank * self._share.batch
        return np.arange(first, first + self._share.batch)

    def _decoded(
        self,
        pixels: NDArray[np.uint8],
        sizes: NDArray[np.int32],
        places: NDArray[np.int64],
        step: int,
        micro: int,
        failures: dict[int, str],
    ) -> Decoded:
        rngs = [np.random.default_rng((self._order.seed, _CROPS, place)) for place in places]
        global_params, local_params = draw_crops(rngs, sizes, self._crops)
        share, total = self._share, self._share.micro_batch
        mine = [crop * total + share.rank * share.batch + image for crop in range(NUM_GLOBAL_CROPS) for image in range(share.batch)]
        masks = mask_batch(
            NUM_GLOBAL_CROPS * total,
            self._grid,
            (self._order.seed, _MASKS, step, micro),
            rows=mine,
            mask_probability=self._crops.mask_sample_probability,
            mask_ratio_min_max=self._crops.mask_ratio_min_max,
        )
        return Decoded(pixels, global_params, local_params, masks, failures)

    def _substitute(self, place: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """Another image for a place whose own cannot be read, the same one on every run."""
        rng = np.random.default_rng((self._order.seed, _SUBSTITUTES, place))
        for row in rng.integers(0, self._order.num_images, MAX_SUBSTITUTES):
            if int(row) in self._failures:
                continue
            if self._substitutes is None:
                self._substitutes = DecoderProcess(self._options)
                self._substitutes.wait_until_ready()
            try:
                self._substitutes.send(self._manifest[int(row)])
                reply = self._substitutes.receive()
            except DecoderDiedError as error:
                self._failures[int(row)] = self._substitutes.close_after(error)
                self._substitutes = None
                continue
            if isinstance(reply.pixels, np.ndarray):
                return reply.pixels, reply.image_size
            self._failures[int(row)] = reply.error
        raise SourceError(
            f"{MAX_SUBSTITUTES} images drawn one after the other could not be read",
            hint="`dino-extract embed` on the same folder lists why",
        )

    def _put(self, item: Decoded | BaseException | None) -> bool:
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
