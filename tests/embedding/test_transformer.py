"""Embedding as a step of a scikit-learn pipeline."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

import dino_extract as dx
from dino_extract.errors import ConfigError, DecodeError
from tests.sample_images import save_pictures

sklearn = pytest.importorskip("sklearn")
OPTIONS = {"model": "vits14", "random_weights": 1, "size": 28, "dtype": "float32"}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Six images in a folder."""
    folder = tmp_path_factory.mktemp("images")
    save_pictures(folder, range(6))
    return sorted(map(str, folder.rglob("*.png")))


def test_it_gives_what_an_encoder_gives(paths: list[str]) -> None:
    """`transform` of paths equals the arrays of `Encoder`, CLS and mean side by side."""
    want = dx.Encoder(tokens="cls,mean", store_dtype="float32", **OPTIONS)(paths)

    got = dx.EmbeddingTransformer(tokens="cls,mean", **OPTIONS).fit_transform(paths)

    np.testing.assert_array_equal(got, np.concatenate([want["features"], want["mean_features"]], axis=1))


def test_it_is_a_step_of_a_pipeline(paths: list[str]) -> None:
    """A classifier on top learns from paths, and works after `clone`, `set_params` and pickle."""
    from sklearn.base import clone
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline

    pipeline = clone(make_pipeline(dx.EmbeddingTransformer(**OPTIONS), KNeighborsClassifier(1)))

    pipeline.fit(paths, list("aabbcc"))

    assert pipeline.predict(paths).tolist() == list("aabbcc")
    assert pickle.loads(pickle.dumps(pipeline)).predict(paths[:2]).tolist() == ["a", "a"]
    assert pipeline[0].get_feature_names_out()[:2].tolist() == ["features_0", "features_1"]
    assert pipeline[0].set_params(tokens="mean").get_feature_names_out()[0] == "mean_features_0"


def test_wrong_tokens_and_bad_images_are_sentences(paths: list[str], tmp_path: Path) -> None:
    """Patch tokens are refused in `fit`, and an unreadable image is named."""
    (tmp_path / "bad.jpg").write_bytes(b"nothing")

    with pytest.raises(ConfigError, match="`tokens` must be"):
        dx.EmbeddingTransformer(tokens="patch").fit(paths)
    with pytest.raises(DecodeError, match="cannot be used"):
        dx.EmbeddingTransformer(**OPTIONS).transform([*paths, str(tmp_path / "bad.jpg")])
