"""Every option of embedding, stated once: the command line, the Python functions and the record in the file follow from it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from dino_extract.errors import ConfigError
from dino_extract.options import Options, option, require_option

if TYPE_CHECKING:
    import torch

SizePolicy = Literal["crop", "squash", "pad", "native"]
AlphaPolicy = Literal["drop", "white", "black"]
Dtype = Literal["auto", "float32", "bfloat16"]
StoreDtype = Literal["float16", "float32"]
Compile = Literal["auto", "on", "off"]
Resize = Literal["auto", "host", "device"]
Decode = Literal["host", "device"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB, 0..1
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_PIXELS = 100_000_000  # 400 MB as Pillow holds it: more than any camera takes, and below the memory limit of a decoder process
DEFAULT_SIZE = 224  # pixels, of models that do not say otherwise

# Attributes of a file that must be equal for its rows to be kept, or to be joined with others. Other attributes only inform.
SIGNATURE = ("model", "weights_sha256", "preprocessing", "tokens", "layers", "compute_dtype", "store_dtype")


@dataclass(frozen=True)
class EmbedConfig(Options):
    """Every option of `embed`.

    Python may pass other types, which are kept as text: `tokens` and `layers` as lists or one number, `size` as a number or a pair
    (height, width), `shard` as a pair, `device` as one `torch.device` or several, `model` and `weights` as a `Path`.

    Args:
        model: name from `dino-extract weights list`, or `timm/NAME` for any ViT of the timm library. The default is the model that the
            `weights` file holds, else vits14.
        weights: checkpoint file or fine-tuning run folder to use instead of the released weights.
        random_weights: seed of untrained weights, for tests and benchmarks only: such features mean nothing.
        offline: never download.
        tokens: kinds of tokens to keep, with commas: cls, patch, registers, mean.
        layers: blocks whose tokens are kept too: `lastN`, or numbers from 0 such as `2,5,8,11`.
        size: side of the model's input in pixels, or HEIGHTxWIDTH, in multiples of the patch size. None is the model's own size: 224 for
            released models, timm's default for models of timm, and the size of training for models from `finetune`.
        preprocess: how an image becomes that size. `crop` is the official evaluation transform; `squash`, `pad` and `native` show the model
            the whole image.
        alpha: `drop` removes transparency, as the official transform does; `white` and `black` put the image on that colour.
        fast_decode: decode large JPEGs at 1/2, 1/4 or 1/8 of their size, never below twice the model's: faster, but not exact.
        device: auto, cpu, cuda, cuda:1, ...; several GPUs with commas, or `all`. Batches go to the devices in turn.
        dtype: precision of the model; `auto` is bfloat16 where the hardware is fast at it.
        store_dtype: precision of the stored embeddings.
        compile: let torch.compile fuse the steps between the matrix products. `auto` does it on a GPU for very many images.
        resize: `host` resizes small images in the decoder processes, `device` resizes them on the device of the model, with the same bits.
            `auto` is `device` on a GPU.
        decode: `host` decodes JPEGs in the decoder processes; `device` decodes them on the GPU with torchcodec. Use `device` when the GPU
            is idle waiting for images. Its pixels differ slightly, and a damaged image is not isolated in a process of its own.
        batch: images per batch; `auto`, or 0, finds a good size.
        workers: decoder processes; `auto`, or 0, is one for each free CPU.
        decode_timeout_s: seconds after which the decoding of one image is given up.
        max_pixels: images with more pixels are not decoded.
        shard: K/N takes the K-th of N parts of the images, counted from 1, for N machines or GPUs at a time. An image stays in its part
            when others are added or removed.

    Raises:
        ConfigError: a value has another type, is outside its range, or is not one of the choices.
    """

    model: str | None = None
    weights: str | None = None
    random_weights: int | None = None
    offline: bool = False
    tokens: str = option("cls", between=",")
    layers: str | None = option(None, between=",")
    size: str | None = option(None, between="x")
    preprocess: SizePolicy = "crop"
    alpha: AlphaPolicy = "drop"
    fast_decode: bool = False
    device: str = option("auto", between=",")
    dtype: Dtype = "auto"
    store_dtype: StoreDtype = "float16"
    compile: Compile = "auto"
    resize: Resize = "auto"
    decode: Decode = "host"
    batch: int = option(0, least=1, auto=0)
    workers: int = option(0, least=1, auto=0)
    decode_timeout_s: float = option(30.0, least=0.1)
    max_pixels: int = option(MAX_PIXELS, least=1)
    shard: str | None = option(None, between="/")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shard is not None:
            object.__setattr__(self, "shard", "{}/{}".format(*parse_shard(self.shard)))

    @classmethod
    def of(cls, options: Mapping[str, Any], others: Iterable[str] = ()) -> EmbedConfig:
        """A configuration from options by name.

        Args:
            options: values by name.
            others: further parameters of the caller, which a misspelt name may mean.

        Raises:
            ConfigError: an option is unknown, or its value is not accepted.
        """
        for name in options:
            require_option(name, [each.name for each in fields(cls)], others)
        return cls(**options)


class EncoderOptions(TypedDict, total=False):
    """Options of an `Encoder` as keyword arguments, for editors and type checkers, with the types that are accepted from Python."""

    weights: str | os.PathLike[str] | None
    random_weights: int | None
    offline: bool
    tokens: str | Iterable[str]
    layers: str | int | Iterable[int] | None
    size: str | int | tuple[int, int] | None
    preprocess: SizePolicy
    alpha: AlphaPolicy
    fast_decode: bool
    device: str | torch.device | Sequence[str | torch.device]
    dtype: Dtype
    store_dtype: StoreDtype
    compile: Compile
    batch: int | Literal["auto"]
    max_pixels: int


class EmbedOptions(EncoderOptions, total=False):
    """Options of `embed` as keyword arguments: the fields of `EmbedConfig`."""

    model: str | os.PathLike[str] | None
    resize: Resize
    decode: Decode
    workers: int | Literal["auto"]
    decode_timeout_s: float
    shard: str | tuple[int, int] | None


def parse_shard(text: str) -> tuple[int, int]:
    """The (K, N) of `K/N`, 1 <= K <= N.

    Raises:
        ConfigError: it has another form.
    """
    number, slash, count = text.partition("/")
    if slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
        return int(number), int(count)
    raise ConfigError(f"`shard` must be K/N with K from 1 to N, got `{text}`", hint="for example `--shard 3/8`")


def most_failures(limit: float | str | None) -> float | None:
    """The limit that `max_failures` sets: a count (int), a share of all images (float, 0..1), or None for no limit.

    Args:
        limit: one of these, or text such as `20` or `1%`.

    Raises:
        ConfigError: it is neither a count nor a share.
    """
    if limit is None:
        return None
    value = limit.tolist() if hasattr(limit, "tolist") else limit
    if isinstance(value, str):
        try:
            value = float(value.removesuffix("%")) / 100 if value.endswith("%") else int(value)
        except ValueError:
            value = None
    if (isinstance(value, float) and 0 <= value <= 1) or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise ConfigError(f"`max_failures` must be a count or a percentage, got `{limit}`", hint="for example `--max-failures 1%`")
