"""The table of models is right, and found."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from dino_extract.backbone import DinoVisionTransformer
from dino_extract.errors import WeightsError
from dino_extract.weights.checkpoint import backbone_config
from dino_extract.weights.registry import checkpoints, find_checkpoint, weights_folder

FLOAT_BYTES = 4


@pytest.mark.parametrize("name", list(checkpoints()))
def test_parameters_are_those_of_the_network(name: str) -> None:
    """The architecture of each model has the number of parameters that the table says."""
    checkpoint = checkpoints()[name]

    with torch.device("meta"):
        model = DinoVisionTransformer(backbone_config(checkpoint))

    assert sum(parameter.numel() for parameter in model.parameters()) == checkpoint.parameters


@pytest.mark.parametrize("name", [name for name, checkpoint in checkpoints().items() if checkpoint.url])
def test_released_file_has_the_size_of_its_parameters(name: str) -> None:
    """The released file has four bytes for each parameter and less than 0.3 MB more."""
    checkpoint = checkpoints()[name]

    assert 0 < (checkpoint.size_bytes or 0) - FLOAT_BYTES * checkpoint.parameters < 300_000


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("dinov2_vits14", "vits14"),
        ("dinov2-s", "vits14"),
        ("dinov2_vits14_reg", "vits14-reg"),
        ("vits14_reg4", "vits14-reg"),
        ("dinov2_vitg14_reg4", "vitg14-reg"),
        ("facebook/dinov2-with-registers-large", "vitl14-reg"),
        ("ViTB14", "vitb14"),
        ("tiny", "tiny"),
    ],
)
def test_aliases_mean_one_model(alias: str, name: str) -> None:
    """The names that others use mean our models."""
    assert find_checkpoint(alias).name == name


def test_names_and_aliases_are_unique() -> None:
    """No two models share a name."""
    names = [name.lower().replace("_", "-") for checkpoint in checkpoints().values() for name in (checkpoint.name, *checkpoint.aliases)]

    assert len(names) == len(set(names))


def test_unknown_name_suggests_a_close_one() -> None:
    """A typing mistake is answered with the name that was meant."""
    with pytest.raises(WeightsError, match="there is no model `vits41`") as caught:
        find_checkpoint("vits41")

    assert caught.value.hint == "did you mean `vits14`?"


def test_another_base_address_changes_the_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A site with its own copy of the files names it in the environment."""
    monkeypatch.setenv("DINO_EXTRACT_WEIGHTS_URL", "https://weights.example/dinov2/")

    assert find_checkpoint("vits14").url == "https://weights.example/dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth"


def test_the_table_is_read_without_torch() -> None:
    """Listing models and looking for files does not wait for torch."""
    code = "import sys, dino_extract.weights as w; w.find_checkpoint, w.resolve_weights, w.cache_dir(); print('torch' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"


def test_the_folder_of_the_repository_has_the_table() -> None:
    """Without an installed copy, the table is the one of the repository."""
    assert (weights_folder() / "checkpoints.toml").is_file()
