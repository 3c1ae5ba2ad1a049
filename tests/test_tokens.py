"""Which tokens are kept, and where each goes."""

from __future__ import annotations

import pytest

from dino_extract.errors import ConfigError
from dino_extract.tokens import TokenSpec


def test_each_kind_goes_to_its_own_dataset() -> None:
    """All four kinds of a ViT-S with registers at 224 pixels have the documented names and shapes."""
    spec = TokenSpec.parse("mean,cls,patch,registers", None, depth=12)

    shapes = spec.row_shapes(embed_dim=384, num_registers=4, grid=(16, 16))

    assert shapes == {
        "features": (384,),
        "patch_features": (16, 16, 384),
        "register_features": (4, 384),
        "mean_features": (384,),
    }


def test_layers_repeat_the_kinds_under_their_number() -> None:
    """`last2` of twelve blocks keeps the tokens of blocks 10 and 11 beside the final ones."""
    spec = TokenSpec.parse("cls", "last2", depth=12)

    assert list(spec.row_shapes(embed_dim=8, num_registers=0, grid=(1, 1))) == ["features", "layers/10/features", "layers/11/features"]


def test_named_layers_are_kept_in_ascending_order_once() -> None:
    """Layers given out of order and twice are sorted and unique."""
    assert TokenSpec.parse("cls", "8,2,8", depth=12).layers == (2, 8)


@pytest.mark.parametrize("tokens", ["", "cls,pach", ","])
def test_an_unknown_token_kind_is_refused_with_the_choices(tokens: str) -> None:
    """A misspelt or missing kind is an error that lists the kinds there are."""
    with pytest.raises(ConfigError, match="takes cls, patch, registers, mean"):
        TokenSpec.parse(tokens, None, depth=12)


@pytest.mark.parametrize("layers", ["12", "-1", "last13", "last0", "lastx", "1,b"])
def test_a_layer_the_model_lacks_is_refused(layers: str) -> None:
    """Layers outside the model, or no numbers, are an error that shows what was typed."""
    with pytest.raises(ConfigError, match=layers):
        TokenSpec.parse("cls", layers, depth=12)


def test_registers_of_a_model_without_them_are_refused() -> None:
    """Asking a plain model for register tokens points to the `-reg` models."""
    spec = TokenSpec.parse("registers", None, depth=12)

    with pytest.raises(ConfigError, match="needs a model with register tokens") as caught:
        spec.row_shapes(embed_dim=8, num_registers=0, grid=(1, 1))

    assert "-reg" in str(caught.value.hint)
