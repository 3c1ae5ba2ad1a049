"""Device, precision and batch size are chosen to suit the machine, and wrong wishes are refused in a sentence."""

from __future__ import annotations

import pytest
import torch

from dino_extract.backbone import BackboneConfig, DinoVisionTransformer
from dino_extract.engine import choose_batch_size, choose_device, choose_dtype
from dino_extract.errors import ConfigError

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


def backbone_of_width(dim: int) -> DinoVisionTransformer:
    """A backbone without blocks: only its shape counts."""
    with torch.device("meta"):
        return DinoVisionTransformer(BackboneConfig(embed_dim=dim, depth=0, num_heads=dim // 64))


def test_an_absent_device_is_refused_with_its_name() -> None:
    """A GPU number that no machine has is a ConfigError that names it."""
    with pytest.raises(ConfigError, match="device `cuda:99` cannot be used"):
        choose_device("cuda:99")


def test_automatic_device_is_one_that_exists() -> None:
    """`auto` gives a device on which a tensor can be made."""
    assert torch.ones(2, device=choose_device("auto")).sum() == 2


def test_an_unknown_dtype_is_refused_with_the_choices() -> None:
    """float16 is no compute dtype, and the message lists those there are."""
    with pytest.raises(ConfigError, match="takes auto, float32 or bfloat16, got `float16`"):
        choose_dtype("float16", CPU)


@pytest.mark.parametrize(("supported", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_automatic_dtype_follows_the_instructions_of_the_cpu(supported: bool, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 is chosen only where the CPU multiplies it in hardware."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: supported)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)

    assert choose_dtype("auto", CPU) == dtype


def test_every_core_gets_an_equal_part_of_a_batch() -> None:
    """A CPU batch is one part of 16 ViT-S images, 8 of ViT-B, for each core."""
    cores = torch.get_num_threads()

    assert choose_batch_size(backbone_of_width(384), (224, 224), CPU, 10_000) == 16 * cores
    assert choose_batch_size(backbone_of_width(768), (224, 224), CPU, 10_000) == 8 * cores


def test_large_images_of_a_large_model_still_make_a_batch() -> None:
    """An image that alone is more than a cache holds still gives every core one."""
    assert choose_batch_size(backbone_of_width(1536), (1036, 1036), CPU, 10_000) == torch.get_num_threads()


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_a_small_job_gets_a_small_batch(device: torch.device) -> None:
    """No batch is larger than the job."""
    assert choose_batch_size(backbone_of_width(384), (224, 224), device, 1) == 1
