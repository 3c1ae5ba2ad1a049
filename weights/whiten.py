"""Even out how strongly the numbers of a backbone's tokens vary, by writing a backbone of the same shape with other weights.

    python weights/whiten.py CHECKPOINT TOKENS.h5 OUTPUT.safetensors

A network trained for a short time tells most of what it knows along a few directions, which then drown the others in every cosine. The
cure is an old one: turn the axes to the principal components of many tokens, and divide each by a power of its standard deviation. Here
this is done to the weights, so that nothing has to be kept beside them. The residual stream is turned by an orthogonal matrix that maps
(1, ..., 1) to itself, with which LayerNorm commutes; the weight and bias of the final norm do the rest. CLS tokens get a mean of 0.

TOKENS.h5 is what `dino-extract embed --tokens cls,patch` wrote with CHECKPOINT for a few thousand images. They need no labels.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

import dino_extract as dx
from dino_extract.backbone import BackboneConfig
from dino_extract.errors import DinoExtractError, WeightsError
from dino_extract.weights.checkpoint import read_checkpoint, save_checkpoint

POWER = 0.75  # of the standard deviation that an axis is divided by: 1 would make all alike, 0 leaves them as they are
FLOOR = 0.03  # added to variances, as a share of their mean: what varies less is noise to a computation in bfloat16
BLOCKS = 8  # of axes; see `_axes`
PATCH_IMAGES = 500  # whose patch tokens are read: over 100,000 tokens at 224 pixels


def whiten(
    tensors: Mapping[str, Tensor], config: BackboneConfig, cls: Tensor, patches: Tensor, *, power: float = POWER, floor: float = FLOOR
) -> dict[str, Tensor]:
    """Weights of a backbone whose tokens are those of the given one with their axes turned, moved and scaled.

    Args:
        tensors: the weights in official keys, any type; the feed-forward network is an MLP.
        config: the architecture.
        cls: (n, D) CLS tokens of that backbone after the final norm, of n images, n well above D.
        patches: (m, N, D) all N patch tokens of m images, likewise; how they vary within an image counts as much as how CLS tokens vary.
        power: 0..1, of the standard deviation that each axis is divided by.
        floor: added to the variance of each axis, as a share of their mean, before that.

    Returns:
        weights in float32, for the same architecture; LayerScale and the norms inside are 1, as they are part of the matrices.
    """
    old = {key: tensor.double() for key, tensor in tensors.items()}
    # What the final norm gives before its weight and bias.
    cls, patches = ((tokens.double() - old["norm.bias"]) / old["norm.weight"] for tokens in (cls, patches))
    within = (patches - patches.mean(1, keepdim=True)).flatten(0, 1)
    covariance = torch.cov(cls.T) + within.T @ within / len(within)
    directions = torch.linalg.eigh(covariance).eigenvectors.flip(1)
    directions[:, -1] = config.embed_dim**-0.5  # LayerNorm leaves no variance along (1, ..., 1), so that is the last up to its sign
    turn = _axes(config.embed_dim) @ directions.T
    variance = (turn @ covariance @ turn.T).diagonal()
    new = dict(old)
    for key in ("cls_token", "pos_embed", "register_tokens", "mask_token"):
        if key in old:
            new[key] = old[key] @ turn.T
    _turn_output(new, old, "patch_embed.proj", turn)
    for block in (f"blocks.{index}." for index in range(config.depth)):
        for norm, reader, writer, scale in (("norm1", "attn.qkv", "attn.proj", "ls1"), ("norm2", "mlp.fc1", "mlp.fc2", "ls2")):
            weight, matrix = old[f"{block}{norm}.weight"], old[f"{block}{reader}.weight"]
            new[f"{block}{reader}.weight"] = (matrix * weight) @ turn.T
            new[f"{block}{reader}.bias"] = old[f"{block}{reader}.bias"] + matrix @ old[f"{block}{norm}.bias"]
            new[f"{block}{norm}.weight"], new[f"{block}{norm}.bias"] = torch.ones_like(weight), torch.zeros_like(weight)
            _turn_output(new, old, f"{block}{writer}", turn * old[f"{block}{scale}.gamma"])
            new[f"{block}{scale}.gamma"] = torch.ones_like(weight)
    new["norm.weight"] = (variance + floor * variance.mean()) ** (-power / 2)
    new["norm.bias"] = -(turn @ cls.mean(0)) * new["norm.weight"]
    return {key: tensor.float().contiguous() for key, tensor in new.items()}


def _turn_output(new: dict[str, Tensor], old: Mapping[str, Tensor], layer: str, turn: Tensor) -> None:
    new[f"{layer}.weight"] = torch.tensordot(turn, old[f"{layer}.weight"], dims=1)
    new[f"{layer}.bias"] = turn @ old[f"{layer}.bias"]


def _axes(dim: int) -> Tensor:
    """An orthogonal matrix (D, D), its last column along (1, ..., 1), that nearly keeps the order of the others.

    The components number D - 1, as LayerNorm takes one, so no axis can be exactly one of them. Within each block of axes a reflection
    shares out what must be shared between neighbours, whose variances are alike; the last components are in all axes of a block.
    """
    size = dim // BLOCKS
    ones = torch.full((size,), size**-0.5, dtype=torch.float64)
    mirror = torch.eye(size, dtype=torch.float64)[-1] - ones
    block = torch.eye(size, dtype=torch.float64) - 2 * torch.outer(mirror, mirror) / mirror.dot(mirror)  # its last column is `ones`
    between = torch.linalg.qr(torch.cat([torch.ones(BLOCKS, 1), torch.eye(BLOCKS)[:, :-1]], dim=1).double()).Q
    between *= between[:, :1].sum().sign()
    within = torch.block_diag(*[block[:, :-1]] * BLOCKS)
    return torch.cat([within, torch.kron(between.roll(-1, dims=1), ones[:, None])], dim=1)


def main() -> None:
    """Read the three paths and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a file or a run folder of `dino-extract finetune`")
    parser.add_argument("tokens", type=Path, help="what `dino-extract embed --tokens cls,patch` wrote with it")
    parser.add_argument("output", type=Path, help="the .safetensors file to write")
    args = parser.parse_args()
    checkpoint = read_checkpoint(args.checkpoint)
    if checkpoint.config.ffn != "mlp":
        raise WeightsError(f"`{args.checkpoint}` has a feed-forward network of type {checkpoint.config.ffn}, expected mlp")
    with dx.open(args.tokens) as file:
        cls = torch.from_numpy(file.features[:])
        patches = torch.from_numpy(file.patch_features[:: -(-len(cls) // PATCH_IMAGES)]).flatten(1, 2)
    tensors = whiten(checkpoint.tensors, checkpoint.config, cls, patches)
    known = {
        key: value for key, value in checkpoint.metadata.items() if key not in ("format", "config", "tensors_sha256", "name", "licence")
    }
    licence = str(checkpoint.metadata.get("licence", "unknown"))
    save_checkpoint(args.output, tensors, checkpoint.config, name=checkpoint.name, licence=licence, record={**known, "whitened": POWER})
    print(
        f"{args.output}: {checkpoint.name}, whitened with the CLS tokens of {len(cls):,} images and the patch tokens of {len(patches):,}",
        file=sys.stderr,
    )


if __name__ == "__main__":
    try:
        main()
    except DinoExtractError as error:
        sys.exit(f"error: {error}")
