"""Embedding as a step of a scikit-learn pipeline."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dino_extract.embedding.encoder import AnyImage, Encoder
from dino_extract.errors import ConfigError
from dino_extract.tokens import KINDS

try:
    from sklearn.base import BaseEstimator, TransformerMixin
except ImportError as error:
    raise ConfigError("an EmbeddingTransformer needs scikit-learn", hint="pip install 'dino-extract[analysis]'") from error

_DATASETS = {kind.name: kind.dataset for kind in KINDS if kind.is_vector}  # kinds with one token per image


class EmbeddingTransformer(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Images in, embeddings out, as a scikit-learn transformer: `make_pipeline(EmbeddingTransformer(), LogisticRegression())`.

    `fit` learns nothing. The model is loaded at the first `transform`, and it is not part of a pickle.

    Args:
        model: name from `dino-extract weights list`, or `timm/NAME`.
        weights: checkpoint file or fine-tuning run.
        random_weights: seed of untrained weights, for tests of plumbing.
        tokens: `cls`, `mean`, or `cls,mean` side by side.
        size: input side in pixels, or `HEIGHTxWIDTH`; None for the model's own.
        preprocess: `crop`, `squash` or `pad`.
        device: as for `embed`.
        dtype: precision of the model, as for `embed`.
        batch: images computed together; 0 chooses.

    Raises:
        ConfigError: scikit-learn is not installed, or an option does not fit.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        weights: str | None = None,
        random_weights: int | None = None,
        tokens: str = "cls",
        size: str | int | None = None,
        preprocess: str = "crop",
        device: str = "auto",
        dtype: str = "auto",
        batch: int = 0,
    ) -> None:
        self.model = model
        self.weights = weights
        self.random_weights = random_weights
        self.tokens = tokens
        self.size = size
        self.preprocess = preprocess
        self.device = device
        self.dtype = dtype
        self.batch = batch

    def fit(self, X: Any = None, y: Any = None) -> EmbeddingTransformer:
        """This transformer, unchanged.

        Raises:
            ConfigError: `tokens` is not `cls`, `mean` or both.
        """
        self._datasets()
        return self

    def transform(self, X: Iterable[AnyImage]) -> NDArray[np.float32]:
        """(n, D) float32 embeddings.

        Args:
            X: paths, Pillow images, the bytes of files, or arrays (H, W, 3) uint8 RGB.

        Raises:
            DecodeError: an image cannot be read; the message says which.
        """
        datasets, images = self._datasets(), list(X)
        arrays = self._encoder()(images)
        return np.concatenate([arrays[name] for name in datasets], axis=1)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[Any]:
        """(D,) names of the columns, such as `features_0`."""
        empty = self._encoder()([])
        return np.array([f"{name}_{column}" for name in self._datasets() for column in range(empty[name].shape[1])], object)

    def _encoder(self) -> Encoder:
        """The model, loaded once for the present parameters."""
        options = self.get_params()
        if getattr(self, "_loaded", (None,))[0] != options:
            self._loaded = options, Encoder(store_dtype="float32", **options)
        return self._loaded[1]

    def _datasets(self) -> list[str]:
        kinds = [kind.strip() for kind in str(self.tokens).split(",")]
        if not set(kinds) <= _DATASETS.keys():
            raise ConfigError(f"`tokens` must be `cls`, `mean` or `cls,mean`, got `{self.tokens}`", hint="patch tokens are not one vector")
        return [dataset for kind, dataset in _DATASETS.items() if kind in kinds]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        return tags

    def __getstate__(self) -> Any:
        return {name: value for name, value in super().__getstate__().items() if name != "_loaded"}
