"""What `EmbedConfig` takes from Python, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image

import dino_extract as dx
from dino_extract.config import EmbedConfig, EmbedOptions, most_failures
from dino_extract.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"layers": 3}, {"layers": "3"}),
        ({"layers": 0}, {"layers": "0"}),
        ({"layers": range(2)}, {"layers": "0,1"}),
        ({"layers": np.array([1, 2])}, {"layers": "1,2"}),
        ({"layers": (each for each in (4, 5))}, {"layers": "4,5"}),
        ({"layers": "last2"}, {"layers": "last2"}),
        ({"tokens": ["cls", "mean"]}, {"tokens": "cls,mean"}),
        ({"size": 28}, {"size": "28"}),
        ({"size": (28, 42)}, {"size": "28x42"}),
        ({"size": np.int64(28)}, {"size": "28"}),
        ({"shard": (3, 8)}, {"shard": "3/8"}),
        ({"shard": "03/8"}, {"shard": "3/8"}),
        ({"device": torch.device("cuda", 1)}, {"device": "cuda:1"}),
        ({"model": Path("tiny"), "weights": Path("a/b.pth")}, {"model": "tiny", "weights": "a/b.pth"}),
        ({"random_weights": np.int64(0), "batch": torch.tensor(8)}, {"random_weights": 0, "batch": 8}),
        ({"max_pixels": np.int64(5), "decode_timeout_s": np.float32(0.5)}, {"max_pixels": 5, "decode_timeout_s": 0.5}),
        ({"fast_decode": np.bool_(True)}, {"fast_decode": True}),
    ],
)
def test_what_python_has_becomes_what_the_command_line_says(given: dict[str, Any], kept: dict[str, Any]) -> None:
    """Lists, numbers of numpy and torch, paths and devices are kept as plain text and numbers, which JSON can hold."""
    config = EmbedConfig(**given)

    assert {name: getattr(config, name) for name in kept} == kept
    assert all(type(getattr(config, name)) is type(value) for name, value in kept.items())
    assert replace(config) == config


def test_a_set_of_tokens_is_their_text() -> None:
    """A set has no order, and neither have token kinds."""
    assert set(EmbedConfig(tokens={"cls", "patch"}).tokens.split(",")) == {"cls", "patch"}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"store_dtype": "int8"}, "`store_dtype` must be `float16` or `float32`, got `int8`"),
        ({"store_dtype": np.float16}, "`store_dtype` must be `float16` or `float32`, got `<class 'numpy.float16'>`"),
        ({"dtype": torch.float32}, "`dtype` must be `auto`, `float32` or `bfloat16`, got `torch.float32`"),
        ({"compile": True}, "`compile` must be `auto`, `on` or `off`, got `True`"),
        ({"resize": "gpu"}, "`resize` must be `auto`, `host` or `device`, got `gpu`"),
        ({"preprocess": ["crop"]}, "`preprocess` must be `crop`, `squash`, `pad` or `native`, got `['crop']`"),
        ({"tokens": None}, "`tokens` must be text, got `None`"),
        ({"weights": 3}, "`weights` must be text, got `3`"),
        ({"fast_decode": "no"}, "`fast_decode` must be `True` or `False`, got `no`"),
        ({"random_weights": True}, "`random_weights` must be a whole number, got `True`"),
        ({"batch": "8"}, "`batch` must be a whole number of at least 1 or `auto`, got `8`"),
        ({"batch": 2.0}, "`batch` must be a whole number of at least 1 or `auto`, got `2.0`"),
        ({"workers": -1}, "`workers` must be a whole number of at least 1 or `auto`, got `-1`"),
        ({"max_pixels": 0}, "`max_pixels` must be a whole number of at least 1, got `0`"),
        ({"max_pixels": 1e8}, "`max_pixels` must be a whole number of at least 1, got `100000000.0`"),
        ({"decode_timeout_s": 0}, "`decode_timeout_s` must be a number of at least 0.1, got `0`"),
        ({"decode_timeout_s": float("nan")}, "`decode_timeout_s` must be a number of at least 0.1, got `nan`"),
        ({"decode_timeout_s": None}, "`decode_timeout_s` must be a number of at least 0.1, got `None`"),
    ],
)
def test_what_no_option_takes_is_one_sentence(given: dict[str, Any], message: str) -> None:
    """A wrong type, choice or range is refused before any work, with what is expected and what came."""
    with pytest.raises(ConfigError) as caught:
        EmbedConfig(**given)

    assert caught.value.message == message


def test_typed_options_are_the_fields() -> None:
    """`EmbedOptions` has the fields of `EmbedConfig`, and accepts at least the types that each field keeps."""
    fields, options = get_type_hints(EmbedConfig), get_type_hints(EmbedOptions, localns={"torch": torch})

    assert options.keys() == fields.keys()
    for name, hint in fields.items():
        kept = set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}
        accepted = set(get_args(options[name])) if get_origin(options[name]) in (Union, UnionType) else {options[name]}
        assert kept <= accepted, name


@pytest.mark.parametrize("call", [dx.embed, dx.Encoder, dx.verify])
def test_an_unknown_option_is_one_sentence_with_the_nearest_name(call: Any, tmp_path: Path) -> None:
    """A misspelt option of a public function is a `ConfigError` that names the option that was meant."""
    Image.new("RGB", (28, 28)).save(tmp_path / "a.png")
    dx.embed(tmp_path, tmp_path / "x.h5", model="tiny", random_weights=0, size=28, workers=1)
    arguments = {dx.embed: [tmp_path, tmp_path / "y.h5"], dx.Encoder: [], dx.verify: [tmp_path / "x.h5"]}[call]

    with pytest.raises(ConfigError, match="`sizes` is not an option, did you mean `size`"):
        call(*arguments, sizes=28)


def test_options_need_no_library() -> None:
    """The module is imported for `--help`, which must not wait for numpy or torch."""
    script = "import sys, dino_extract.config; assert not {'torch', 'numpy'} & sys.modules.keys()"

    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("limit", "means"),
    [(None, None), (0, 0), (20, 20), ("20", 20), (1, 1), (0.01, 0.01), ("1%", 0.01), ("100%", 1.0), (1.0, 1.0), (np.int64(3), 3)],
)
def test_a_limit_of_failures_is_a_count_or_a_share(limit: Any, means: float | None) -> None:
    """Whole numbers count images; percentages and floats are a share of all, also when all may fail."""
    allowed = most_failures(limit)

    assert (allowed, type(allowed)) == (means, type(means))


@pytest.mark.parametrize("limit", ["some", "", "%", "nan%", "inf%", "101%", "-1", "-1%", "0.5", -1, 1.5, float("nan"), True, [1]])
def test_no_limit_of_failures_is_one_sentence(limit: Any) -> None:
    """What is neither a count nor a share is refused, and does not mean that there is no limit."""
    with pytest.raises(ConfigError, match="`max_failures` must be a count or a percentage, got `"):
        most_failures(limit)


@pytest.mark.parametrize("shard", ["0/8", "9/8", "3", "3/", "/8", "-1/8", "a/b", "1/2/3", 3, (1, 2, 3)])
def test_a_shard_counts_from_one_to_n(shard: Any) -> None:
    """Anything but K/N with K from 1 to N is refused with an example."""
    with pytest.raises(ConfigError, match="K/N with K from 1 to N") as caught:
        EmbedConfig(shard=shard)
    assert caught.value.hint == "for example `--shard 3/8`"
