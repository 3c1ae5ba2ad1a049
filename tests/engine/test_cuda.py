"""On a GPU the engine gives the backbone's tokens, batch after batch."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from dino_extract.backbone import BackboneConfig, DinoVisionTransformer
from dino_extract.config import Resize
from dino_extract.embedding.pipeline import embed
from dino_extract.engine import ComputeDtype, Engine, allocator_for
from dino_extract.engine.resize import to_device
from dino_extract.images.decode import decode_image
from dino_extract.images.preprocess import DeviceImages, Jpeg, Preprocess, preprocess
from dino_extract.status import Status
from dino_extract.store import open_store
from dino_extract.tokens import TokenSpec
from dino_extract.weights import load_backbone

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]

CUDA = torch.device("cuda", 0)


def make_backbone() -> DinoVisionTransformer:
    """A small backbone with random weights."""
    torch.manual_seed(0)
    return DinoVisionTransformer(BackboneConfig(embed_dim=128, depth=3, num_heads=2, image_size=70, layer_scale_init=0.5)).eval()


def make_pixels(count: int, seed: int = 0) -> np.ndarray:
    """Random images (count, 56, 70, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (count, 56, 70, 3), dtype=np.uint8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own parts
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-4)])
@pytest.mark.parametrize("compiled", [False, True])
def test_tokens_equal_those_of_the_cpu(dtype: ComputeDtype, tolerance: float, compiled: bool) -> None:
    """Tokens from the captured graph have the direction of those from the CPU in float32."""
    spec = TokenSpec(("cls", "patch"), (0,))
    pixels = make_pixels(5)
    want = Engine(make_backbone(), spec, device=torch.device("cpu"), dtype="float32", store_dtype="float32", batch_size=4)(pixels)

    engine = Engine(make_backbone(), spec, device=CUDA, dtype=dtype, store_dtype="float32", batch_size=4, compiled=compiled, size=(56, 70))
    got = engine(pixels)

    for name, rows in got.items():
        cosine = torch.cosine_similarity(torch.from_numpy(rows), torch.from_numpy(want[name]), dim=-1)
        assert cosine.min() >= 1 - tolerance, name


def test_a_model_that_makes_tensors_on_the_host_in_every_forward_runs() -> None:
    """A timm network with rotary positions, which no CUDA graph can hold, gives the tokens of the CPU."""
    pytest.importorskip("timm")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 80, 3), dtype=np.uint8)
    tokens = [
        Engine(
            load_backbone("timm/vit_small_patch16_dinov3", random_weights=0),
            TokenSpec(("cls",)),
            device=device,
            dtype="float32",
            store_dtype="float32",
            batch_size=2,
        )(pixels)["features"]
        for device in (torch.device("cpu"), CUDA)
    ]

    assert torch.cosine_similarity(*map(torch.from_numpy, tokens)).min() > 1 - 1e-5


def test_batches_under_way_do_not_mix() -> None:
    """Ten batches submitted at once give what each gives alone."""
    engine = Engine(make_backbone(), TokenSpec(("cls",)), device=CUDA, dtype="bfloat16", batch_size=4)
    batches = [make_pixels(4, seed) for seed in range(10)]
    alone = [engine(pixels)["features"] for pixels in batches]

    together = [batch.result()["features"] for batch in [engine.submit(pixels) for pixels in batches]]

    for got, want in zip(together, alone, strict=True):
        np.testing.assert_array_equal(got, want)


def test_engines_on_all_gpus_give_the_same() -> None:
    """One engine on each GPU, or two on the only one, with batches under way on all of them: each gives what the first gives alone."""
    devices = [torch.device("cuda", number % torch.cuda.device_count()) for number in range(max(2, torch.cuda.device_count()))]
    engines = [Engine(make_backbone(), TokenSpec(("cls",)), device=device, dtype="float32", batch_size=4) for device in devices]
    batches = [make_pixels(4, seed) for seed in range(4 * len(engines))]
    alone = [engines[0](pixels)["features"] for pixels in batches]

    under_way = [engines[number % len(engines)].submit(pixels) for number, pixels in enumerate(batches)]

    for batch, want in zip(under_way, alone, strict=True):
        np.testing.assert_allclose(batch.result()["features"], want, rtol=1e-3, atol=1e-3)


def test_graphs_of_several_sizes_share_their_memory_and_nothing_else() -> None:
    """Two sizes of images in turn give, whichever is captured first, what each gives in an engine of its own."""
    sizes = {side: np.ascontiguousarray(make_pixels(4, side)[:, :side]) for side in (28, 56)}

    def make_engine() -> Engine:
        return Engine(make_backbone(), TokenSpec(("cls", "patch")), device=CUDA, dtype="bfloat16", batch_size=4)

    want = {side: make_engine()(pixels) for side, pixels in sizes.items()}
    engine = make_engine()

    under_way = [(side, engine.submit(sizes[side])) for side in (28, 56, 56, 28, 28, 56)]

    for side, batch in under_way:
        got = batch.result()
        for name in want[side]:
            np.testing.assert_array_equal(got[name], want[side][name])


def test_pictures_are_resized_to_the_bits_of_the_cpu() -> None:
    """Pictures of different sizes, more than one batch of them, give what those resized by Pillow give."""
    options = Preprocess(height=56, width=70)
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (40 + 9 * number, 300 - 11 * number, 3), dtype=np.uint8) for number in range(10)]
    pictures = DeviceImages(images, np.zeros(10, bool), options)
    assert all(options.can_resize_later(*image.shape[:2]) for image in images)

    pixels = to_device(pictures, CUDA).cpu().numpy()

    np.testing.assert_array_equal(pixels, [preprocess(image, options) for image in images])
    engine = Engine(make_backbone(), TokenSpec(("cls",)), device=CUDA, dtype="bfloat16", batch_size=4)
    np.testing.assert_array_equal(engine(pictures)["features"], engine(pixels)["features"])


def test_jpegs_decoded_there_are_close_to_those_of_pillow() -> None:
    """Smooth pictures differ by the chroma's interpolation alone, and a damaged one costs its own row."""
    pytest.importorskip("torchcodec.decoders", reason="the extra `gpu-decode` is not installed")
    options = Preprocess(height=224, width=224)
    jpegs, want = [], []
    for number in range(8):
        noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).resize((500 + number, 375)).save(file, "JPEG", quality=90)
        jpegs.append(Jpeg(np.frombuffer(file.getvalue(), np.uint8).copy(), (375, 500 + number)))
        want.append(preprocess(decode_image(file.getvalue()), options).astype(int))
    jpegs[3] = Jpeg(jpegs[3].content[:300], jpegs[3].size)

    pixels = to_device(DeviceImages(jpegs, np.zeros(8, bool), options), CUDA).cpu().numpy()

    assert [bool(jpeg.error) for jpeg in jpegs] == [number == 3 for number in range(8)]
    for number in (0, 1, 2, 4, 5, 6, 7):
        assert np.abs(pixels[number] - want[number]).mean() < 2


def test_pinned_pixels_are_those_of_any_memory() -> None:
    """Pixels in memory made for the GPU give what others give, also when much is under way."""
    engine = Engine(make_backbone(), TokenSpec(("cls",)), device=CUDA, dtype="bfloat16", batch_size=4)
    want = [engine(make_pixels(4, seed))["features"] for seed in range(10)]
    under_way = []
    for seed in range(10):
        pixels = allocator_for(CUDA)((4, 56, 70, 3))
        pixels[:] = make_pixels(4, seed)
        under_way.append(engine.submit(pixels))
        del pixels

    for batch, features in zip(under_way, want, strict=True):
        np.testing.assert_array_equal(batch.result()["features"], features)


@pytest.mark.parametrize("resize", ["host", "device"])
def test_a_run_gives_the_file_of_the_cpu(tmp_path: Path, resize: Resize) -> None:
    """Twenty images, one of them broken, in batches of three: the vectors of the CPU, in their rows, and the same failure."""
    folder = tmp_path / "images"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(20):
        coarse = Image.fromarray(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((100 + 7 * number, 90)).save(folder / f"{number:02}.jpg")
    (folder / "07.jpg").write_bytes((folder / "07.jpg").read_bytes()[:300])

    options: dict[str, Any] = {"model": "tiny", "random_weights": 0, "size": "56", "tokens": "cls,patch", "dtype": "float32", "batch": 3}
    options |= {"workers": 2, "store_dtype": "float32"}
    embed(folder, tmp_path / "cpu.h5", device="cpu", **options)
    embed(folder, tmp_path / "gpu.h5", device="cuda", resize=resize, **options)

    with open_store(tmp_path / "cpu.h5") as cpu, open_store(tmp_path / "gpu.h5") as gpu:
        assert gpu.all_status.tolist() == cpu.all_status.tolist()
        assert np.flatnonzero(cpu.all_status != Status.OK).tolist() == [7]
    with h5py.File(tmp_path / "cpu.h5") as cpu_file, h5py.File(tmp_path / "gpu.h5") as gpu_file:
        for name in ("features", "patch_features"):
            np.testing.assert_allclose(gpu_file[name][:], cpu_file[name][:], rtol=0, atol=1e-4)


def test_a_batch_beyond_the_memory_is_halved_until_it_fits() -> None:
    """With little memory left to this process a far too large batch still gives its rows."""
    backbone = make_backbone()
    spec = TokenSpec(("cls",))
    pixels = make_pixels(64)
    want = Engine(backbone, spec, device=CUDA, dtype="float32", store_dtype="float32", batch_size=4)(pixels)["features"]
    total = torch.cuda.get_device_properties(CUDA).total_memory
    torch.cuda.empty_cache()  # what other tests leave, workspaces of cuBLAS among it, does not count

    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(CUDA) + 256 * 2**20) / total)
    try:
        engine = Engine(backbone, spec, device=CUDA, dtype="float32", store_dtype="float32", batch_size=2**15)
        got = engine(pixels)["features"]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)

    assert engine.batch_size < 2**15
    np.testing.assert_allclose(got, want, atol=1e-3)
