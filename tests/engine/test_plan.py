"""Device, precision and batch size are chosen to suit the machine, and wrong wishes are refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._inductor import config as inductor

from dino_extract.backbone import BackboneConfig, DinoVisionTransformer
from dino_extract.engine import choose_batch_size, choose_compiled, choose_device, choose_devices, choose_dtype, forward_flops, plan
from dino_extract.engine.plan import compiler_problem, is_worth_compiling
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


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:", "1"])
def test_an_unknown_device_is_refused_with_the_choices(device: str) -> None:
    """A word that is no device, or a device that nothing is computed on, is answered with those there are."""
    with pytest.raises(ConfigError, match=f"`device` must be auto, cpu, cuda or cuda:N, got `{device}`"):
        choose_device(device)


def test_several_devices_are_of_one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names with commas, in their order; `all` is every GPU there is; GPUs and the CPU do not share a run."""
    assert choose_devices("cpu, cpu") == (torch.device("cpu"),) * 2
    monkeypatch.setattr(plan, "choose_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert choose_devices("all") == tuple(torch.device(f"cuda:{number}") for number in range(3))
    assert choose_devices("cuda:2,cuda:0") == (torch.device("cuda:2"), torch.device("cuda:0"))
    with pytest.raises(ConfigError, match="GPUs or the CPU, not both"):
        choose_devices("cuda,cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="takes all GPUs, and there are none"):
        choose_devices("all")


def test_automatic_device_is_one_that_exists() -> None:
    """`auto` gives a device on which a tensor can be made."""
    assert torch.ones(2, device=choose_device("auto")).sum() == 2


def test_an_unknown_dtype_is_refused_with_the_choices() -> None:
    """float16 is no compute dtype, and the message lists those there are."""
    with pytest.raises(ConfigError, match="must be auto, float32 or bfloat16, got `float16`"):
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


@pytest.mark.parametrize(("dim", "heads", "depth", "gigaflops"), [(384, 6, 12, 93.4), (768, 12, 12, 303.1), (1024, 16, 24, 1013.6)])
def test_work_of_a_model_is_that_which_timm_lists(dim: int, heads: int, depth: int, gigaflops: float) -> None:
    """The whole forward at 518 pixels has twice the multiply-additions of timm's tables (46.76, 151.7, 507.2 G)."""
    with torch.device("meta"):
        backbone = DinoVisionTransformer(BackboneConfig(dim, depth, heads))

    flops = forward_flops(backbone, (518, 518), whole=True)

    assert flops == pytest.approx(gigaflops * 1e9, rel=1e-2)


def test_keeping_only_cls_saves_most_of_the_last_block() -> None:
    """For a ViT-S at 224 pixels the CLS token alone needs 7 % less work than all tokens."""
    with torch.device("meta"):
        backbone = DinoVisionTransformer(BackboneConfig(384, 12, 6))

    whole, prefix = (forward_flops(backbone, (224, 224), whole=is_whole) for is_whole in (True, False))

    assert whole is not None
    assert prefix is not None
    assert 0.92 < prefix / whole < 0.94


@pytest.mark.parametrize(
    ("device", "flops", "is_worth"), [(CUDA, 2e17, True), (CUDA, 1e16, False), (CUDA, None, False), (CPU, 1e30, False)]
)
def test_compiling_is_worth_it_for_much_work_of_our_own_on_a_gpu(device: torch.device, flops: float | None, is_worth: bool) -> None:
    """A small job, another library's network and a CPU are not compiled for."""
    assert is_worth_compiling(device, flops) is is_worth


def test_off_never_compiles() -> None:
    """`--compile off` holds for any amount of work."""
    assert not choose_compiled("off", CUDA, 1e30)


def test_without_a_compiler_auto_goes_on_and_on_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch cannot compile, `auto` does without it, and `on` is one sentence with torch's reason."""
    monkeypatch.setattr(plan, "compiler_problem", lambda device: "no working C++ compiler")

    assert not choose_compiled("auto", CUDA, 1e30)
    with pytest.raises(ConfigError, match="needs a C\\+\\+ compiler, and torch says: no working C\\+\\+ compiler"):
        choose_compiled("on", CPU, None)


def test_a_missing_compiler_is_found_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a compiler that is not there the problem is one line that is not empty; it is no exception."""
    monkeypatch.setattr(inductor.cpp, "cxx", (None, str(tmp_path / "no-such-compiler")))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    compiler_problem.cache_clear()
    torch.compiler.reset()

    problem = compiler_problem(CPU)

    compiler_problem.cache_clear()
    assert problem
    assert "\n" not in problem
