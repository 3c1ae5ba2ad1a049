"""Every option of embedding, stated once: the command line, the Python API and the file's record follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dino_extract.errors import ConfigError
from dino_extract.options import Options, option

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


@dataclass(frozen=True)
class EmbedConfig(Options):
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
        batch: images per batch; `auto`, or 0, finds a good size.
        workers: decoder processes; `auto`, or 0, is one for each free CPU.
        decode_timeout_s: seconds after which the decoding of one image is given up.
        max_pixels: images with more pixels are not decoded.
        shard: K/N takes the K-th of N parts of the images, counted from 1, for N machines or GPUs at a time; an image stays in its part
            whatever others come and go.

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
