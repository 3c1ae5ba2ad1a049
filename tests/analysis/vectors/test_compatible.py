"""Files are compared only where the same image would have the same vector in both."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dino_extract.analysis.vectors.compatible import require_compatible, require_other_images
from dino_extract.errors import ConfigError, StoreError
from dino_extract.images.preprocess import Preprocess


class Made(NamedTuple):
    """A file as far as the check looks at it."""

    path: str
    attrs: dict[str, Any]


def made(path: str, *, model: str = "vits14", weights: str = "ab" * 32, compute_dtype: str = "float32", **pixels: Any) -> Made:
    """A record as `embed` writes it."""
    record = replace(Preprocess(), **pixels).as_record()
    attrs = {"model": model, "weights_sha256": weights, "preprocessing": json.dumps(record), "compute_dtype": compute_dtype}
    return Made(path, attrs)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "vitb14"}, "model vits14 and vitb14"),
        ({"weights": "cd" * 32}, r"weights abababababababab\.\.\. and cdcdcdcdcdcdcdcd\.\.\."),
        ({"weights": "random:1234567890123"}, r"weights abababababababab\.\.\. and random:1234567890123"),
        ({"height": 448, "width": 448}, "size 224x224 and 448x448"),
        ({"policy": "pad"}, "preprocess crop and pad"),
        ({"alpha": "white"}, "alpha drop and white"),
        ({"std": (0.5, 0.5, 0.5)}, r"std \[0.229, 0.224, 0.225\] and \[0.5, 0.5, 0.5\]"),
    ],
)
def test_a_setting_that_changes_vectors_is_refused_by_name(change: dict[str, Any], said: str) -> None:
    """Another network, size, policy, alpha or normalisation is one error that says which, with both values and nothing else."""
    with pytest.raises(StoreError, match=rf"^`a.h5` and `b.h5` are not compatible \({said}\): their vectors cannot be compared$"):
        require_compatible(made("a.h5"), made("b.h5", **change))


def test_every_difference_is_named_at_once() -> None:
    """Three differences need one run to be seen."""
    with pytest.raises(StoreError, match=r"\(model vits14 and vitl14, size 224x224 and 518x518, alpha drop and black\)"):
        require_compatible(made("a.h5"), made("b.h5", model="vitl14", height=518, width=518, alpha="black"))


@pytest.mark.parametrize(
    "change", [{"compute_dtype": "bfloat16"}, {"fast_decode": True}, {"decode": "device"}, {"max_pixels": 1000}, {"max_bytes": 1000}]
)
def test_a_setting_that_only_rounds_or_refuses_images_may_differ(change: dict[str, Any]) -> None:
    """The type of the products, fast decoding and limits leave vectors comparable."""
    require_compatible(made("a.h5"), made("b.h5", **change))


def test_images_are_not_tested_on_themselves(tmp_path: Path) -> None:
    """One file under two names is one file; labels of the test's own may choose other images of it."""
    (tmp_path / "b.h5").symlink_to("a.h5")
    one, same = made(str(tmp_path / "a.h5")), made(str(tmp_path / "b.h5"))

    with pytest.raises(ConfigError, match=r"`.*b.h5` would be tested on the images it was trained on"):
        require_other_images(one, same, None)
    require_other_images(one, same, "test.csv")
    require_other_images(one, made(str(tmp_path / "c.h5")), None)


def test_a_step_of_preprocessing_that_is_not_known_yet_counts() -> None:
    """A later version that records one more step is not taken for the same."""
    later = made("b.h5")
    later.attrs["preprocessing"] = json.dumps({**json.loads(later.attrs["preprocessing"]), "colour_profile": "applied"})

    with pytest.raises(StoreError, match="colour_profile unknown and applied"):
        require_compatible(made("a.h5"), later)
