"""A recipe is what the options say on this machine, and a file's record gives it back."""

from __future__ import annotations

import pickle
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pytest

from dino_extract.config import EmbedConfig
from dino_extract.embedding.recipe import config_of, load_recipe, recipe_like, recipe_of
from dino_extract.errors import ConfigError, StoreError, WeightsError

TINY = EmbedConfig(model="tiny", random_weights=0, size="28", tokens="cls", dtype="float32")


@dataclass(frozen=True)
class Record:
    """What a file says of itself."""

    attrs: dict[str, Any]
    path: str = "x.h5"


@pytest.mark.parametrize(
    "options",
    [
        {"tokens": "cls,patch", "layers": "2,5", "random_weights": 3},
        {"tokens": "registers,mean", "size": "28x42", "preprocess": "squash", "dtype": "bfloat16"},
        {"preprocess": "pad", "alpha": "white", "max_pixels": 12345, "store_dtype": "float32"},
        {"preprocess": "native", "fast_decode": True, "tokens": "patch"},
    ],
)
def test_a_record_gives_back_the_options_that_decide_the_numbers(options: dict[str, Any]) -> None:
    """Recorded and read back, options, datasets and record are the same; what only decides how fast it goes is not recorded."""
    first = recipe_of(replace(TINY, **options, workers=3, batch=5), 10)

    again = recipe_like(Record(first.settings.record()), 10)

    assert again.settings.record() == first.settings.record()
    assert again.settings.datasets() == first.settings.datasets()
    assert asdict(again.settings.config) == asdict(replace(first.settings.config, workers=0, batch=0))


def test_changes_stand_above_the_record() -> None:
    """What is given beside a record replaces what it says; weights that differ are refused."""
    record = Record(recipe_of(TINY, 10).settings.record())

    assert config_of(record, tokens="mean").tokens == "mean"
    with pytest.raises(StoreError, match=r"`x\.h5` was made with weights random:0"):
        recipe_like(record, 10, random_weights=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decode": "device", "resize": "host"}, "`decode=device` does not go with `resize=host`"),
        ({"decode": "device", "preprocess": "native"}, "`decode=device` does not go with `preprocess=native`"),
        ({"decode": "device", "fast_decode": True}, "`decode=device` does not go with `fast_decode`"),
        ({"resize": "device", "preprocess": "native"}, "`resize=device` needs images of one size"),
    ],
)
def test_what_contradicts_itself_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    """Work beside the model needs images of one size, in full resolution."""
    with pytest.raises(ConfigError, match=message):
        recipe_of(replace(TINY, **options), 10)


def test_settings_travel_to_another_process_and_give_the_same_recipe() -> None:
    """Pickled and loaded again, settings give an equal recipe with the same embeddings; other weights are refused."""
    recipe = recipe_of(TINY, 10)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), np.uint8)

    again = load_recipe(pickle.loads(pickle.dumps(recipe.settings)))

    assert again == recipe
    np.testing.assert_array_equal(again.engine()(pixels)["features"], recipe.engine()(pixels)["features"])
    with pytest.raises(WeightsError, match="the settings are for weights random:0"):
        load_recipe(replace(recipe.settings, config=replace(TINY, random_weights=1)))


def test_batches_follow_from_the_number_of_images() -> None:
    """Few images make small batches; a number that is given stands; images of different shapes go one by one."""
    assert recipe_of(TINY, 1).settings.batch_size == 1
    assert recipe_of(TINY, 10_000).settings.batch_size > 1
    assert recipe_of(replace(TINY, batch=7), 10_000).settings.batch_size == 7
    assert recipe_of(replace(TINY, preprocess="native", batch=7), 10_000).settings.batch_size == 1
