"""The engine gives the backbone's tokens, whatever batch an image is in."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from dino_extract.backbone import Backbone, BackboneConfig, DinoVisionTransformer, Tokens
from dino_extract.config import StoreDtype
from dino_extract.engine import ComputeDtype, Engine, lean
from dino_extract.engine.lean import attend_fused
from dino_extract.engine.plan import compiler_problem
from dino_extract.engine.run import fast_tokens
from dino_extract.tokens import TokenSpec
from dino_extract.weights import load_backbone
from tests.sample_images import MeanColour

CPU = torch.device("cpu")
EVERYTHING = TokenSpec(("cls", "patch", "registers", "mean"), (0, 2))
SMALL = BackboneConfig(embed_dim=64, depth=3, num_heads=2, image_size=70)
VARIANTS = {
    "mlp": SMALL,
    "mlp_reg4": SMALL.with_registers(),
    "swiglu": BackboneConfig(embed_dim=48, depth=3, num_heads=3, image_size=70, ffn="swiglu"),
    "swiglu_reg4": BackboneConfig(embed_dim=48, depth=3, num_heads=3, image_size=70, ffn="swiglu").with_registers(),
}


def make_backbone(config: BackboneConfig, seed: int = 0) -> DinoVisionTransformer:
    """A backbone whose every weight matters: no branch is scaled away and no norm or bias is trivial."""
    draw = torch.Generator().manual_seed(seed)
    model = DinoVisionTransformer(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("gamma"):
                weight.uniform_(0.1, 1, generator=draw)
            elif "norm" in name and name.endswith("weight"):
                weight.uniform_(0.5, 1.5, generator=draw)
            elif weight.ndim == 2 and "blocks" in name:
                weight.normal_(0, weight.shape[1] ** -0.5, generator=draw)
            elif "patch_embed" in name:
                weight.normal_(0, 0.03, generator=draw)
            else:
                weight.normal_(0, 0.3, generator=draw)
    return model


def make_pixels(count: int, height: int = 56, width: int = 70, seed: int = 0) -> np.ndarray:
    """Images (count, height, width, 3) uint8 with structure at every scale and a colour cast of their own."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 200, (count, height // 14, width // 14, 3)).repeat(14, axis=1).repeat(14, axis=2)
    return (coarse + draw.integers(0, 56, (count, height, width, 3))).astype(np.uint8)


def make_engine(
    backbone: Backbone,
    spec: TokenSpec = EVERYTHING,
    *,
    dtype: ComputeDtype = "float32",
    store_dtype: StoreDtype = "float32",
    batch_size: int = 4,
) -> Engine:
    """An engine on the CPU that stores what it computes."""
    return Engine(backbone, spec, device=CPU, dtype=dtype, store_dtype=store_dtype, batch_size=batch_size)


def spec_for(config: BackboneConfig) -> TokenSpec:
    """Everything that a backbone of this shape can give."""
    return EVERYTHING if config.num_registers else TokenSpec(("cls", "patch", "mean"), (0, 2))


@torch.inference_mode()
def reference_arrays(backbone: Backbone, pixels: np.ndarray) -> dict[str, Tensor]:
    """What `EVERYTHING` means for normalised images, computed by the backbone in float32, by dataset name."""
    mean, std = (torch.tensor(stat).view(3, 1, 1) for stat in (backbone.mean, backbone.std))
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    layers = backbone.intermediate_layers(images, [0, 2])
    named = {"": backbone(images), "layers/0/": layers[0], "layers/2/": layers[1]}
    grid = (pixels.shape[1] // backbone.patch_size, pixels.shape[2] // backbone.patch_size)
    arrays = {}
    for prefix, tokens in named.items():
        arrays[f"{prefix}features"] = tokens.cls
        arrays[f"{prefix}patch_features"] = tokens.patches.unflatten(1, grid)
        arrays[f"{prefix}register_features"] = tokens.registers
        arrays[f"{prefix}mean_features"] = tokens.patches.mean(dim=1)
    return arrays


def assert_equal_tokens(got: np.ndarray, want: Tensor, tolerance: float) -> None:
    """No component differs by more than `tolerance` times the norm of its token."""
    difference = (torch.from_numpy(got) - want).abs().amax(dim=-1)
    assert (difference <= tolerance * want.norm(dim=-1)).all(), f"differs by up to {(difference / want.norm(dim=-1)).max():.1e}"


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_tokens_equal_the_backbone(variant: str) -> None:
    """In float32 every token of every dataset equals the backbone's to 1e-4 of its norm; in fact to 1e-6."""
    backbone = make_backbone(VARIANTS[variant])
    pixels = make_pixels(3)

    arrays = make_engine(backbone, spec_for(VARIANTS[variant]))(pixels)

    want = reference_arrays(backbone, pixels)
    for name, got in arrays.items():
        assert_equal_tokens(got, want[name], 1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_prefix_tokens_alone_equal_the_backbone(variant: str) -> None:
    """Where only CLS and registers are kept, and the last block computes only them, they equal the backbone's."""
    backbone = make_backbone(VARIANTS[variant])
    kinds = ("cls", "registers") if VARIANTS[variant].num_registers else ("cls",)
    pixels = make_pixels(3)

    arrays = make_engine(backbone, TokenSpec(kinds, (0, 2)))(pixels)

    want = reference_arrays(backbone, pixels)
    for name, got in arrays.items():
        assert_equal_tokens(got, want[name], 1e-6)


@pytest.mark.parametrize("spec", [EVERYTHING, TokenSpec(("cls", "registers"), (0, 2))], ids=["whole", "prefix"])
@pytest.mark.parametrize("variant", ["mlp_reg4", "swiglu_reg4"])
def test_bfloat16_tokens_point_where_the_float32_ones_do(variant: str, spec: TokenSpec) -> None:
    """In bfloat16 every token has a cosine of at least 0.9999 with the backbone's."""
    backbone = make_backbone(VARIANTS[variant])
    pixels = make_pixels(3)

    arrays = make_engine(backbone, spec, dtype="bfloat16")(pixels)

    want = reference_arrays(backbone, pixels)
    for name, got in arrays.items():
        assert torch.cosine_similarity(torch.from_numpy(got), want[name], dim=-1).min() >= 0.9999, name


def test_bfloat16_computation_is_not_float32() -> None:
    """The two compute dtypes are told apart by rounding, so the bfloat16 tests test bfloat16."""
    backbone = make_backbone(SMALL)
    pixels = make_pixels(2)

    exact, mixed = (make_engine(backbone, TokenSpec(("cls",)), dtype=dtype)(pixels)["features"] for dtype in ("float32", "bfloat16"))

    assert np.abs(exact - mixed).max() > 1e-4


@pytest.mark.parametrize("store_dtype", ["float16", "float32"])
def test_datasets_have_the_promised_names_shapes_and_dtype(store_dtype: StoreDtype) -> None:
    """The arrays are those of `TokenSpec.row_shapes`, in the storage dtype."""
    config = SMALL.with_registers()

    arrays = make_engine(make_backbone(config), store_dtype=store_dtype)(make_pixels(3))

    promised = EVERYTHING.row_shapes(embed_dim=64, num_registers=4, grid=(4, 5))
    assert {name: array.shape for name, array in arrays.items()} == {name: (3, *shape) for name, shape in promised.items()}
    assert {array.dtype for array in arrays.values()} == {np.dtype(store_dtype)}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own parts
def test_a_compiled_engine_gives_the_same_tokens() -> None:
    """Compiled by torch for this CPU, in several threads and with a padded last batch, the network gives the backbone's tokens."""
    if problem := compiler_problem(CPU):
        pytest.skip(f"torch cannot compile here: {problem}")
    backbone = make_backbone(BackboneConfig(embed_dim=64, depth=3, num_heads=2, image_size=70).with_registers())
    pixels = make_pixels(5)

    engine = Engine(backbone, EVERYTHING, device=CPU, dtype="float32", store_dtype="float32", batch_size=4, compiled=True)
    arrays = engine(pixels)

    want = reference_arrays(backbone, pixels)
    for name, got in arrays.items():
        assert_equal_tokens(got, want[name], 1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kinds", [("cls",), ("cls", "patch", "mean")], ids=["cls", "patches"])
def test_an_image_gets_the_same_bits_in_any_batch(dtype: ComputeDtype, kinds: tuple[str, ...]) -> None:
    """Alone, first, last, and among others, in full and in partial batches, an image has bit for bit the same tokens."""
    engine = make_engine(make_backbone(SMALL), TokenSpec(kinds), dtype=dtype, batch_size=4)
    pixels = make_pixels(11)
    together = engine(pixels)

    reversed_order = engine(pixels[::-1].copy())
    alone = [engine(pixels[index : index + 1]) for index in range(len(pixels))]

    for name, rows in together.items():
        np.testing.assert_array_equal(rows, reversed_order[name][::-1])
        np.testing.assert_array_equal(rows, np.concatenate([one[name] for one in alone]))


def test_batches_submitted_together_come_back_in_order() -> None:
    """Several batches under way at once give what they give one after the other."""
    engine = make_engine(make_backbone(SMALL), TokenSpec(("cls",)))
    batches = [make_pixels(3, seed=seed) for seed in range(5)]
    one_by_one = [engine(pixels)["features"] for pixels in batches]

    under_way = [engine.submit(pixels) for pixels in batches]

    for batch, want in zip(under_way, one_by_one, strict=True):
        np.testing.assert_array_equal(batch.result()["features"], want)


def test_images_of_other_sizes_equal_the_backbone() -> None:
    """One engine serves image sizes in turn, each with its own positions, and again the first."""
    backbone = make_backbone(SMALL)
    engine = make_engine(backbone, TokenSpec(("cls", "patch")))

    for height, width in [(56, 70), (70, 70), (28, 98), (56, 70)]:
        pixels = make_pixels(2, height, width)
        want = reference_arrays(backbone, pixels)
        for name, got in engine(pixels).items():
            assert_equal_tokens(got, want[name], 1e-6)


def test_more_sizes_than_are_remembered_equal_the_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes whose positions are not kept any more are computed anew, and right."""
    monkeypatch.setattr(lean, "MAX_GRIDS", 1)
    backbone = make_backbone(SMALL)
    engine = make_engine(backbone, TokenSpec(("cls",)))

    for height, width in [(56, 70), (28, 42), (42, 28), (28, 42)]:
        pixels = make_pixels(1, height, width)
        assert_equal_tokens(engine(pixels)["features"], reference_arrays(backbone, pixels)["features"], 1e-6)


def test_statistics_of_the_model_normalise_the_pixels() -> None:
    """A backbone with a mean and deviation of its own gets its pixels normalised with them."""
    backbone = make_backbone(SMALL)
    backbone.mean, backbone.std = (0.5, 0.4, 0.3), (0.5, 0.1, 0.2)
    pixels = make_pixels(2)

    got = make_engine(backbone, TokenSpec(("cls",)))(pixels)["features"]

    assert_equal_tokens(got, reference_arrays(backbone, pixels)["features"], 1e-6)


class ColourBackbone(Backbone):
    """A backbone of another library: every token is the mean colour of what it sees, so that the answer is known."""

    embed_dim = 3
    depth = 2
    patch_size = 14
    num_registers = 1
    mean = (0.0, 0.0, 0.0)
    std = (1.0, 1.0, 1.0)
    memory_images = 1000  # more images at once than this do not fit

    def forward(self, images: Tensor) -> Tokens:
        """Mean colour of the image and of each patch."""
        if len(images) > self.memory_images:
            raise torch.cuda.OutOfMemoryError(f"{len(images)} images do not fit")
        patches = torch.nn.functional.avg_pool2d(images, 14).flatten(2).transpose(1, 2)
        whole = images.mean(dim=(2, 3))
        return Tokens(whole, whole[:, None], patches)

    def intermediate_layers(self, images: Tensor, layers: Sequence[int], *, norm: bool = True) -> list[Tokens]:
        """Tokens of layer k are those of the output, plus k less the last layer."""
        tokens = self(images)
        shift = [layer - (self.depth - 1) for layer in layers]
        return [Tokens(tokens.cls + by, tokens.registers + by, tokens.patches + by) for by in shift]


def test_any_other_backbone_runs_as_it_is() -> None:
    """A backbone that is not ours gives its own tokens, for the final output and for layers."""
    pixels = make_pixels(3)

    arrays = make_engine(ColourBackbone(), TokenSpec(("cls", "patch", "registers", "mean"), (0,)))(pixels)

    colour = (pixels / 255).mean(axis=(1, 2))
    np.testing.assert_allclose(arrays["features"], colour, rtol=1e-5)
    np.testing.assert_allclose(arrays["mean_features"], colour, rtol=1e-5)
    np.testing.assert_allclose(arrays["register_features"], colour[:, None], rtol=1e-5)
    np.testing.assert_allclose(arrays["patch_features"], (pixels / 255).reshape(3, 4, 14, 5, 14, 3).mean(axis=(2, 4)), rtol=1e-5)
    np.testing.assert_allclose(arrays["layers/0/features"], colour - 1, rtol=1e-5)


def test_a_timm_model_gives_its_own_tokens() -> None:
    """A timm ViT behind our interface runs through the engine, in parts and padded, and gives what timm gives."""
    backbone = load_backbone("timm/vit_tiny_patch16_224", random_weights=0)
    pixels = make_pixels(3, 224, 224)
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5  # this model's own statistics

    got = make_engine(backbone, TokenSpec(("cls", "patch"), (3,)))(pixels)

    with torch.inference_mode():
        want = backbone.model.forward_features(images)
        middle = backbone.model.forward_intermediates(
            images, indices=[3], norm=True, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
        )
    assert_equal_tokens(got["features"], want[:, 0], 1e-5)
    assert_equal_tokens(got["patch_features"], want[:, 1:].unflatten(1, (14, 14)), 1e-5)
    assert_equal_tokens(got["layers/3/features"], middle[0][1][:, 0], 1e-5)


def test_a_batch_that_does_not_fit_is_halved() -> None:
    """When the device is out of memory the batch is halved until it fits, stays so, and no row is lost or moved."""
    backbone = ColourBackbone()
    backbone.memory_images = 3
    engine = Engine(backbone, TokenSpec(("cls",)), device=CPU, dtype="float32", batch_size=16 * torch.get_num_threads())
    pixels = make_pixels(20)

    got = engine(pixels)["features"]

    assert engine.batch_size == 2 * torch.get_num_threads()
    np.testing.assert_allclose(got, (pixels / 255).mean(axis=(1, 2)), atol=1e-3)


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in the documentation",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.",
    ],
)
@pytest.mark.parametrize("is_hidden", [False, True])
def test_memory_that_runs_out_outside_of_the_cache_of_torch_halves_too(said: str, is_hidden: bool) -> None:
    """Errors of the driver and of libraries that have no memory count, also behind one that came while they were handled."""

    class Backbone(ColourBackbone):
        def forward(self, images: Tensor) -> Tokens:
            try:
                if len(images) > 3:
                    raise RuntimeError(said)
            finally:
                if len(images) > 3 and is_hidden:
                    raise RuntimeError("Invalid capture.")
            return super().forward(images)

    engine = Engine(Backbone(), TokenSpec(("cls",)), device=CPU, dtype="float32", batch_size=16 * torch.get_num_threads())
    pixels = make_pixels(20)

    got = engine(pixels)["features"]

    assert engine.batch_size == 2 * torch.get_num_threads()
    np.testing.assert_allclose(got, (pixels / 255).mean(axis=(1, 2)), atol=1e-3)


def test_another_error_of_the_device_is_not_taken_for_one_of_memory() -> None:
    """An illegal access comes out as it is, with the place where it came from, and the batch stays as it was."""

    class Backbone(ColourBackbone):
        def forward(self, images: Tensor) -> Tokens:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    engine = make_engine(Backbone(), TokenSpec(("cls",)))
    size = engine.batch_size

    with pytest.raises(RuntimeError, match="illegal memory access") as raised:
        engine(make_pixels(2))

    assert raised.traceback[-1].name == "forward"
    assert engine.batch_size == size


def test_batches_under_way_are_halved_once_together() -> None:
    """Two batches that both fail for lack of memory halve the batch size once, not once each."""
    backbone = ColourBackbone()
    backbone.memory_images = 8
    size = 16 * torch.get_num_threads()
    engine = Engine(backbone, TokenSpec(("cls",)), device=CPU, dtype="float32", batch_size=size)

    under_way = [engine.submit(make_pixels(size)) for _ in range(2)]
    results = [batch.result()["features"] for batch in under_way]

    assert engine.batch_size == size // 2
    assert [len(rows) for rows in results] == [size, size]


def test_one_image_that_does_not_fit_is_an_error() -> None:
    """Where not even one image fits, the device's own error comes out."""
    backbone = ColourBackbone()
    backbone.memory_images = 0
    engine = make_engine(backbone, TokenSpec(("cls",)))

    with pytest.raises(torch.cuda.OutOfMemoryError, match="1 images do not fit"):
        engine(make_pixels(2))


def test_an_error_of_the_model_comes_out_of_the_engine() -> None:
    """Sides that are no multiple of the patch are refused by name, though the model runs in other threads."""
    engine = make_engine(make_backbone(SMALL), TokenSpec(("cls",)))

    with pytest.raises(AssertionError, match="divisible by 14, got 56x71"):
        engine(make_pixels(1, 56, 70)[:, :, [*range(70), 0]])


def test_the_threads_of_torch_stay_as_they_were() -> None:
    """An engine changes the number of threads neither for its caller nor for threads started later."""
    before = torch.get_num_threads()
    seen: list[int] = []

    make_engine(make_backbone(SMALL), TokenSpec(("cls",)))(make_pixels(5))
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()

    assert [torch.get_num_threads(), *seen] == [before, before]


def test_building_an_engine_draws_no_random_numbers() -> None:
    """The global generator is where it was, so an engine may be built in the middle of a training run."""
    backbone = make_backbone(SMALL)
    before = torch.get_rng_state()

    make_engine(backbone)(make_pixels(1))

    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_backbone_stays_usable_unless_released(dtype: ComputeDtype) -> None:
    """An engine leaves the weights of the backbone alone."""
    backbone = make_backbone(SMALL)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}

    make_engine(backbone, dtype=dtype, spec=TokenSpec(("cls",)))(make_pixels(1))

    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_released_backbone_gives_its_memory_back(dtype: ComputeDtype) -> None:
    """With `release` no block of the backbone holds memory any more, and the tokens are the same."""
    pixels = make_pixels(2)
    spec = TokenSpec(("cls",))
    want = make_engine(make_backbone(SMALL), spec, dtype=dtype)(pixels)["features"]
    backbone = make_backbone(SMALL)

    engine = Engine(backbone, spec, device=CPU, dtype=dtype, store_dtype="float32", batch_size=4, release=True)

    assert sum(weight.untyped_storage().nbytes() for weight in backbone.blocks.parameters()) == 0
    np.testing.assert_array_equal(engine(pixels)["features"], want)


@pytest.mark.parametrize("release", [False, True])
def test_a_model_of_another_library_is_moved_only_if_it_is_handed_over(release: bool) -> None:
    """An engine on one device leaves the model where it is, for an engine on another, unless it may take it."""
    model = MeanColour()
    model.register_buffer("weight", torch.zeros(3))

    fast_tokens(model, TokenSpec(), device=torch.device("meta"), dtype=torch.float32, attend=attend_fused, release=release, compiled=False)

    assert model.weight.device.type == ("meta" if release else "cpu")
