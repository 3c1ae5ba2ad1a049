"""The kinds of tokens that may be kept of an image, the layers they come from, and the dataset that stores each.

A new kind of token is one more row of `KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from dino_extract.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from dino_extract.backbone import Tokens

Grid = tuple[int, int]  # patches (h, w)


class TokenSizes(NamedTuple):
    """The sizes that the shape of a token array follows from: width D of a token, registers R, and patch grid (h, w)."""

    embed_dim: int
    num_registers: int
    grid: Grid


@dataclass(frozen=True)
class Kind:
    """One kind of token.

    Args:
        name: as in the option `tokens`.
        dataset: name in the HDF5 file. Consumers such as CLAM, TRIDENT and thingsvision read these names unchanged.
        shape: gives the shape of one row.
        select: takes the tokens of a batch and their patch grid, gives (B, *shape).
        needs_patches: it is computed from patch tokens, so the last block must compute all of them.
        needs_registers: only models with register tokens have it.
        is_grid: one token for each patch: the first two axes of `shape` are the patch grid, which differs between images of `native`.
    """

    name: str
    dataset: str
    shape: Callable[[TokenSizes], tuple[int, ...]]
    select: Callable[[Tokens, Grid], Tensor]
    needs_patches: bool = False
    needs_registers: bool = False
    is_grid: bool = False

    @property
    def is_vector(self) -> bool:
        """Whether an image has one token of this kind."""
        return len(self.shape(TokenSizes(1, 1, (1, 1)))) == 1


# In the order in which they are stored.
KINDS = (
    Kind("cls", "features", lambda sizes: (sizes.embed_dim,), lambda tokens, grid: tokens.cls),
    Kind(
        "patch",
        "patch_features",
        lambda sizes: (*sizes.grid, sizes.embed_dim),
        lambda tokens, grid: tokens.patches.unflatten(1, grid),
        needs_patches=True,
        is_grid=True,
    ),
    Kind(
        "registers",
        "register_features",
        lambda sizes: (sizes.num_registers, sizes.embed_dim),
        lambda tokens, grid: tokens.registers,
        needs_registers=True,
    ),
    # The mean is taken in float32, whatever the precision of the model.
    Kind(
        "mean",
        "mean_features",
        lambda sizes: (sizes.embed_dim,),
        lambda tokens, grid: tokens.patches.float().mean(dim=1),
        needs_patches=True,
    ),
)

KIND_OF = {kind.name: kind for kind in KINDS}


class TokenOutput(NamedTuple):
    """One dataset that the model fills: its name, its kind of token, and the block it is taken from (None: the last)."""

    dataset: str
    kind: Kind
    layer: int | None


@dataclass(frozen=True)
class TokenSpec:
    """Which tokens are kept, from the final output and from intermediate layers.

    Args:
        kinds: names of token kinds; each has its own dataset.
        layers: block indices (0 is the first block) of which the same kinds are kept as well, after the final norm.
    """

    kinds: tuple[str, ...] = ("cls",)
    layers: tuple[int, ...] = ()

    @classmethod
    def parse(cls, tokens: str, layers: str | None, depth: int) -> TokenSpec:
        """Read the options `tokens`, such as `cls,patch`, and `layers`, such as `last4` or `2,5,8,11`, for a backbone of `depth` blocks.

        Raises:
            ConfigError: a token kind is unknown, or the backbone does not have a layer.
        """
        names = [part.strip() for part in tokens.split(",") if part.strip()]
        unknown = [name for name in names if name not in KIND_OF]
        if unknown or not names:
            got = f"`{','.join(unknown)}`" if unknown else "nothing"
            raise ConfigError(f"`tokens` takes {', '.join(KIND_OF)}, got {got}", hint="for example `--tokens cls,patch`")
        return cls(tuple(name for name in KIND_OF if name in names), _parse_layers(layers, depth))

    @property
    def needs_patches(self) -> bool:
        """Whether the last block must compute the patch tokens too."""
        return any(KIND_OF[name].needs_patches for name in self.kinds)

    def outputs(self) -> Iterator[TokenOutput]:
        """Every dataset, in the order in which they are stored."""
        for layer in (None, *self.layers):
            for kind in map(KIND_OF.__getitem__, self.kinds):
                yield TokenOutput(kind.dataset if layer is None else f"layers/{layer}/{kind.dataset}", kind, layer)

    def row_shapes(self, *, embed_dim: int, num_registers: int, grid: Grid | None) -> dict[str, tuple[int, ...]]:
        """The shape of one row of every dataset, in the order in which they are stored.

        Args:
            embed_dim: width D of one token.
            num_registers: register tokens R of the backbone.
            grid: patch grid (h, w); None where it differs between images: the shape of a kind with `is_grid` is then that of one patch.

        Raises:
            ConfigError: register tokens are asked of a backbone that has none.
        """
        sizes = TokenSizes(embed_dim, num_registers, grid or (0, 0))
        shapes = {}
        for name, kind, _ in self.outputs():
            if kind.needs_registers and num_registers == 0:
                raise ConfigError(
                    f"`tokens` has `{kind.name}`, which needs a model with register tokens, and this one has none",
                    hint="use a `-reg` model such as `--model vits14-reg`",
                )
            shape = kind.shape(sizes)
            shapes[name] = shape[2:] if kind.is_grid and grid is None else shape
        return shapes


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
        raise ConfigError(f"`layers` takes `lastN` or block numbers, got `{layers}`", hint=hint) from None
    if not wanted or wanted[0] < 0 or wanted[-1] >= depth:
        raise ConfigError(f"`layers` must be among this model's blocks 0..{depth - 1}, got `{layers}`", hint=hint)
    return tuple(wanted)
