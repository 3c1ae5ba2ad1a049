"""Every option of embedding, stated once: the command line, the Python API and the file's record follow from it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_type_hints

from dino_extract.errors import ConfigError

SizePolicy = Literal["crop", "squash", "pad", "native"]
AlphaPolicy = Literal["drop", "white", "black"]
Dtype = Literal["auto", "float32", "bfloat16"]
StoreDtype = Literal["float16", "float32"]
Compile = Literal["auto", "on", "off"]
Resize = Literal["auto", "host", "device"]
Decode = Literal["host", "device"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB, 0..1
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_PIXELS = 100_000_000  # 400 MB as Pillow holds it; well above any camera, and in reach of the memory limit of a decoder process
DEFAULT_SIZE = 224  # pixels, of models that do not say otherwise

# Attributes of a file that must be equal for its rows to be kept, or to be joined with others; every other attribute only informs.
SIGNATURE = ("model", "weights_sha256", "preprocessing", "tokens", "layers", "compute_dtype", "store_dtype")

LEAST = {"batch": 0, "workers": 0, "decode_timeout_s": 0.1, "max_pixels": 1}  # that these options may be


@dataclass(frozen=True)
class EmbedConfig:
    """How images become embeddings.

    From Python, `tokens` and `layers` may be lists or one number, `size` a number or a pair (height, width), `shard` a pair, `device` one
    `torch.device` or several, and `model` and `weights` a `Path`; they are kept as text.

    Args:
        model: name from `dino-extract weights list`, or `timm/NAME` for any ViT of the timm library; by default what the
            `weights` file holds, else vits14.
        weights: checkpoint file or fine-tuning run folder to use instead of the released weights.
        random_weights: seed of untrained weights, for plumbing and benchmarks only: features mean nothing.
        offline: never download.
        tokens: comma-separated token kinds to keep: cls, patch, registers, mean.
        layers: blocks of which the same tokens are kept too: `lastN`, or numbers from 0 such as `2,5,8,11`.
        size: side of the model's input in pixels, or HEIGHTxWIDTH; multiples of the patch size. None is the model's own: 224 for
            released ones, timm's default for those of timm, and for those of `finetune` what they were trained at.
        preprocess: how an image becomes that size; `crop` is the official evaluation transform.
        alpha: what becomes of transparency: dropped as the official transform does, or laid over white or black.
        fast_decode: decode large JPEGs at 1/2, 1/4 or 1/8 of their size, never below twice the model's: faster, not exact.
        device: auto, cpu, cuda, cuda:1, ...; several GPUs with commas, or `all`: batches go to them in turn.
        dtype: of the matrix products; auto is bfloat16 where the hardware is fast at it.
        store_dtype: of the embeddings in the file.
        compile: let torch.compile fuse the steps between the matrix products; auto does on a GPU when it pays, for very many images.
        resize: where small images are resized: by the decoder processes, or beside the model, which auto does on a GPU; the same bits.
        decode: where plain JPEGs are decoded: by the decoder processes, or beside the model, by torchcodec: for a GPU that waits for the
            decoders. Not quite the same pixels there, and not isolated.
        batch: images per batch; 0 finds a good size.
        workers: decoder processes; 0 is one for each free CPU.
        decode_timeout_s: seconds after which the decoding of one image is given up.
        max_pixels: images with more pixels are not decoded.
        shard: K/N takes the K-th of N parts of the images, counted from 1, for N machines or GPUs at a time; an image stays in its part
            whatever others come and go.

    Raises:
        ConfigError: a value of another type, outside its range, or none of the choices.
    """

    model: str | None = None
    weights: str | None = None
    random_weights: int | None = None
    offline: bool = False
    tokens: str = "cls"
    layers: str | None = None
    size: str | None = None
    preprocess: SizePolicy = "crop"
    alpha: AlphaPolicy = "drop"
    fast_decode: bool = False
    device: str = "auto"
    dtype: Dtype = "auto"
    store_dtype: StoreDtype = "float16"
    compile: Compile = "auto"
    resize: Resize = "auto"
    decode: Decode = "host"
    batch: int = 0
    workers: int = 0
    decode_timeout_s: float = 30.0
    max_pixels: int = MAX_PIXELS
    shard: str | None = None

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(EmbedConfig).items():
            value = getattr(self, name)
            if hasattr(value, "tolist") and not isinstance(value, type):
                value = value.tolist()  # numbers and arrays of numpy and torch, which this module does not load
            if name in _BETWEEN and value is not None:
                value = _joined(value, _BETWEEN[name])
            elif isinstance(value, os.PathLike):
                value = os.fspath(value)
            _check(name, hint, value)
            object.__setattr__(self, name, value)
        if self.shard is not None:
            object.__setattr__(self, "shard", "{}/{}".format(*parse_shard(self.shard)))


# what stands between several of them on the command line
_BETWEEN = {"tokens": ",", "layers": ",", "device": ",", "size": "x", "shard": "/"}
_KINDS = {str: "text", bool: "True or False", int: "a whole number", float: "a number"}


def _joined(value: Any, between: str) -> str:
    several = value if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    return between.join(map(str, several))


def _check(name: str, hint: Any, value: Any) -> None:
    """Refuse a value that is not of its field's type, none of its choices, or out of its range."""
    choices = get_args(hint)
    if NoneType in choices:
        if value is None:
            return
        hint, choices = choices[0], ()
    if choices:
        is_good = isinstance(value, str) and value in choices
        expected = f"{', '.join(choices[:-1])} or {choices[-1]}"
    else:
        is_good = isinstance(value, (int, float) if hint is float else hint) and (hint is bool or not isinstance(value, bool))
        expected = _KINDS[hint]
    if name in LEAST:
        is_good = is_good and value >= LEAST[name]  # which NaN is not
        expected += f" of at least {LEAST[name]}"
    if not is_good:
        option = name.removesuffix("_s").replace("_", "-")
        raise ConfigError(f"`--{option}` takes {expected}, got `{value}`")


def parse_shard(text: str) -> tuple[int, int]:
    """The (K, N) of `K/N`, 1 <= K <= N.

    Raises:
        ConfigError: anything else.
    """
    number, slash, count = text.partition("/")
    if slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
        return int(number), int(count)
    raise ConfigError(f"`--shard` takes K/N with K from 1 to N, got `{text}`", hint="for example `--shard 3/8`")


def most_failures(limit: float | str | None) -> float | None:
    """What `--max-failures` or `max_failures` allows: a count (int), a share of all images (float, 0..1), or None for no limit.

    Args:
        limit: such a value, or text: `20`, or `1%`.

    Raises:
        ConfigError: anything else.
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
    raise ConfigError(f"`--max-failures` takes a count or a percentage, got `{limit}`", hint="for example `--max-failures 1%`")
