"""The vocabulary of what is kept from one image: token kinds, layers, and the dataset each goes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from dino_extract.errors import ConfigError

TokenKind = Literal["cls", "patch", "registers", "mean"]

TOKEN_KINDS: tuple[TokenKind, ...] = get_args(TokenKind)

# Dataset names that existing HDF5 consumers (CLAM, TRIDENT, thingsvision) read unchanged.
DATASET_OF: dict[TokenKind, str] = {
    "cls": "features",
    "patch": "patch_features",
    "registers": "register_features",
    "mean": "mean_features",
}


@dataclass(frozen=True)
class TokenSpec:
    """Which tokens are kept, from the final output and from intermediate layers.

    Args:
        kinds: token kinds, each its own dataset; `mean` is the mean of the patch tokens.
        layers: block indices (0 is the first block) of which the same kinds are kept as well, after the final norm.
    """

    kinds: tuple[TokenKind, ...] = ("cls",)
    layers: tuple[int, ...] = ()

    @classmethod
    def parse(cls, tokens: str, layers: str | None, depth: int) -> TokenSpec:
        """Read `--tokens cls,patch` and `--layers last4` or `--layers 2,5,8,11` for a backbone of `depth` blocks.

        Raises:
            ConfigError: an unknown token kind, or a layer the backbone does not have.
        """
        kinds = tuple(dict.fromkeys(part.strip() for part in tokens.split(",") if part.strip()))
        unknown = [kind for kind in kinds if kind not in TOKEN_KINDS]
        if unknown or not kinds:
            got = f"`{','.join(unknown)}`" if unknown else "nothing"
            raise ConfigError(f"`--tokens` takes {', '.join(TOKEN_KINDS)}, got {got}", hint="for example `--tokens cls,patch`")
        return cls(tuple(kind for kind in TOKEN_KINDS if kind in kinds), _parse_layers(layers, depth))

    def row_shapes(self, *, embed_dim: int, num_registers: int, grid: tuple[int, int]) -> dict[str, tuple[int, ...]]:
        """The shape of one row of every dataset, in the order they are stored.

        Args:
            embed_dim: width D of one token.
            num_registers: register tokens R of the backbone.
            grid: patch grid (h, w).

        Raises:
            ConfigError: register tokens are asked of a backbone that has none.
        """
        if "registers" in self.kinds and num_registers == 0:
            raise ConfigError(
                "`--tokens registers` needs a model with register tokens, this one has none",
                hint="use a `-reg` model such as `--model vits14-reg`",
            )
        shape_of: dict[TokenKind, tuple[int, ...]] = {
            "cls": (embed_dim,),
            "patch": (*grid, embed_dim),
            "registers": (num_registers, embed_dim),
            "mean": (embed_dim,),
        }
        prefixes = ["", *(f"layers/{layer}/" for layer in self.layers)]
        return {prefix + DATASET_OF[kind]: shape_of[kind] for prefix in prefixes for kind in self.kinds}


def _parse_layers(layers: str | None, depth: int) -> tuple[int, ...]:
    hint = f"for example `--layers last4` or `--layers 0,{depth - 1}`"
    if not layers:
        return ()
    try:
        if layers.startswith("last"):
            count = int(layers.removeprefix("last"))
            wanted = list(range(depth - count, depth)) if count >= 1 else []
        else:
            wanted = sorted({int(part) for part in layers.split(",")})
    except ValueError:
        raise ConfigError(f"`--layers` takes `lastN` or block numbers, got `{layers}`", hint=hint) from None
    if not wanted or wanted[0] < 0 or wanted[-1] >= depth:
        raise ConfigError(f"`--layers {layers}` is outside this model's blocks 0..{depth - 1}", hint=hint)
    return tuple(wanted)
