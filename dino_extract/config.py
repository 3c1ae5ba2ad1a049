"""Every option of embedding, stated once: the command line, the Python API and the file's record follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SizePolicy = Literal["crop", "squash", "pad", "native"]
AlphaPolicy = Literal["drop", "white", "black"]
Dtype = Literal["auto", "float32", "bfloat16"]
StoreDtype = Literal["float16", "float32"]
Compile = Literal["auto", "on", "off"]
Resize = Literal["auto", "host", "device"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB, 0..1
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_PIXELS = 100_000_000  # 400 MB as Pillow holds it; well above any camera, and in reach of the memory limit of a decoder process
DEFAULT_SIZE = 224  # pixels, of models that do not say otherwise


@dataclass(frozen=True)
class EmbedConfig:
    """How images become embeddings.

    From Python, `tokens` and `layers` may be lists, `size` a pair (height, width), and `device` a `torch.device`; they are kept as text.

    Args:
        model: name from `dino-extract weights list`, or `timm/NAME` for any ViT of the timm library; by default what the
            `weights` file holds, else vits14.
        weights: checkpoint file or fine-tuning run folder to use instead of the released weights.
        random_weights: seed of untrained weights, for plumbing and benchmarks only: features mean nothing.
        offline: never download.
        tokens: comma-separated token kinds to keep: cls, patch, registers, mean.
        layers: blocks of which the same tokens are kept too: `lastN`, or numbers from 0 such as `2,5,8,11`.
        size: side of the model's input in pixels, a number or text, or HEIGHTxWIDTH; multiples of the patch size. None is the model's own:
            224 for released ones, timm's default for those of timm, and for those of `finetune` what they were trained at.
        preprocess: how an image becomes that size; `crop` is the official evaluation transform.
        alpha: what becomes of transparency: dropped as the official transform does, or laid over white or black.
        fast_decode: decode large JPEGs at 1/2, 1/4 or 1/8 of their size, never below twice the model's: faster, not exact.
        device: auto, cpu, cuda, cuda:1, ...
        dtype: of the matrix products; auto is bfloat16 where the hardware is fast at it.
        store_dtype: of the embeddings in the file.
        compile: let torch.compile fuse the steps between the matrix products; auto does on a GPU when it pays, for very many images.
        resize: where small images are resized: by the decoder processes, or beside the model, which auto does on a GPU; the same bits.
        batch: images per batch; 0 finds a good size.
        workers: decoder processes; 0 is one for each free CPU.
        decode_timeout_s: seconds after which the decoding of one image is given up.
        max_pixels: images with more pixels are not decoded.
    """

    model: str | None = None
    weights: str | None = None
    random_weights: int | None = None
    offline: bool = False
    tokens: str = "cls"
    layers: str | None = None
    size: str | int | None = None
    preprocess: SizePolicy = "crop"
    alpha: AlphaPolicy = "drop"
    fast_decode: bool = False
    device: str = "auto"
    dtype: Dtype = "auto"
    store_dtype: StoreDtype = "float16"
    compile: Compile = "auto"
    resize: Resize = "auto"
    batch: int = 0
    workers: int = 0
    decode_timeout_s: float = 30.0
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        for name, between in (("tokens", ","), ("layers", ","), ("size", "x")):
            value = getattr(self, name)
            if isinstance(value, (list, tuple)):
                object.__setattr__(self, name, between.join(map(str, value)))
        object.__setattr__(self, "device", str(self.device))
