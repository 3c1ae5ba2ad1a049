"""Linear probes on stores: inputs, honest choice, few-shot, and the saved probe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dino_extract.analysis.probes.linear import inputs_in, linear
from dino_extract.analysis.probes.probe import Probe, classify
from dino_extract.errors import ConfigError, StoreError
from dino_extract.store import open_store
from tests.analysis.stores import blobs, keys_of, write_store

PREPROCESSING = '{"policy": "squash"}'


def stores(tmp_path: Path, *, spread: float = 0.8, model: str = "vits14") -> tuple[str, str]:
    """A training and a test store of 4 classes, whose mean tokens are noise, and whose layers are too but for the last."""
    paths = []
    for seed, name in enumerate(("train", "test")):
        vectors, labels = blobs(4, 25, 12, spread=spread, seed=seed)
        noise = np.random.default_rng(seed + 7).standard_normal((5, 100, 6)).astype(np.float32)
        arrays = {"features": vectors, "mean_features": noise[4]} | {f"layers/{k + 8}/features": noise[k] for k in range(3)}
        arrays["layers/11/features"] = vectors
        paths.append(write_store(tmp_path / f"{model}-{name}.h5", keys_of(labels), arrays, model=model, attrs={"note": PREPROCESSING}))
    return paths[0], paths[1]


def test_official_inputs_are_made_from_the_stored_datasets(tmp_path: Path) -> None:
    """CLS, mean and four layers give the four inputs of the official evaluation."""
    with open_store(stores(tmp_path)[0]) as store:
        inputs = inputs_in(store)

    assert list(inputs) == ["cls", "last4", "cls+mean", "last4+mean"]
    assert inputs["last4+mean"] == (*(f"layers/{k}/features" for k in (8, 9, 10, 11)), "mean_features")


@pytest.mark.parametrize("layers", [(0, 1, 2, 3), (2, 5, 8, 11)])
def test_layers_that_are_not_the_last_are_called_by_their_numbers(tmp_path: Path, layers: tuple[int, ...]) -> None:
    """Only the four last blocks are `last4`: neither the first ones of a model nor ones apart, though the last is among them."""
    noise = np.random.default_rng(0).standard_normal((5, 10, 6)).astype(np.float32)
    last = noise[3] if layers[-1] == 11 else noise[4]
    arrays = {"features": last} | {f"layers/{layer}/features": noise[k] for k, layer in enumerate(layers)}

    with open_store(write_store(tmp_path / "x.h5", keys_of(["a"] * 10), arrays)) as store:
        inputs = inputs_in(store)

    name = "layers" + "-".join(map(str, layers))
    assert inputs == {"cls": ("features",), name: tuple(f"layers/{layer}/features" for layer in layers)}


@pytest.mark.parametrize("method", ["logistic", "sgd"])
def test_the_useful_input_is_chosen_and_tested(tmp_path: Path, method: str) -> None:
    """Where only CLS tells the classes apart, an input with CLS is chosen, and the test accuracy is that of its probe."""
    train, test = stores(tmp_path)

    result = linear(train, test, method=method, iterations=300)  # type: ignore[arg-type]  # one of the literals

    assert result.chosen.input in ("cls", "cls+mean")
    assert result.top1 > 0.85
    with open_store(test) as store:
        predicted = result.probe.probabilities(result.probe.inputs_of(store)).argmax(axis=1)
    assert result.top1 == pytest.approx((predicted == np.repeat(np.arange(4), 25)).mean())
    assert np.trace(result.confusion) == round(result.top1 * 100)


def test_the_test_labels_do_not_change_the_choice(tmp_path: Path) -> None:
    """With wrong test labels the same input, setting and weights come out: nothing is chosen on the test set."""
    train, test = stores(tmp_path, spread=2.0)
    with open_store(test) as store:
        (tmp_path / "wrong.csv").write_text("".join(f"{path},class{number % 4:03}\n" for number, path in enumerate(store.paths)))

    honest, misled = linear(train, test), linear(train, test, test_labels=tmp_path / "wrong.csv")

    assert misled.candidates == honest.candidates
    np.testing.assert_array_equal(misled.probe.weight, honest.probe.weight)
    assert misled.top1 < honest.top1


def test_one_file_is_tested_on_a_fifth_of_itself(tmp_path: Path) -> None:
    """Without a test file, a fifth of every class is kept from training."""
    result = linear(stores(tmp_path)[0], dataset=["cls"])

    assert (result.num_train, result.num_test) == (80, 20)
    assert result.confusion.sum(axis=1).tolist() == [5, 5, 5, 5]


def test_few_shot_trains_on_few_images(tmp_path: Path) -> None:
    """With one image per class there is nothing to hold out, and training still works."""
    result = linear(*stores(tmp_path, spread=0.2), dataset=["cls"], per_class=1)

    assert result.num_train == 4
    assert result.top1 > 0.95


def test_an_input_that_is_not_stored_is_named(tmp_path: Path) -> None:
    """The error lists the inputs there are, and how to get the others."""
    vectors, labels = blobs(2, 5, 4)
    path = write_store(tmp_path / "x.h5", keys_of(labels), {"features": vectors})

    with pytest.raises(ConfigError, match="has no input `last4`, only cls") as caught:
        linear(path, dataset=["last4"])

    assert "--layers last4" in str(caught.value.hint)


def test_one_input_and_labels_in_memory_are_taken(tmp_path: Path) -> None:
    """`inputs="cls"` is a list of one, and labels may be a list in the order of the rows."""
    vectors, labels = blobs(2, 20, 8, spread=0.3)
    path = write_store(tmp_path / "x.h5", [f"{row:02}.jpg" for row in range(40)], {"features": vectors})

    result = linear(path, dataset="cls", labels=labels)

    assert result.top1 == 1.0
    assert [each.input for each in result.candidates] == ["cls"]


def test_a_saved_probe_classifies_as_before(tmp_path: Path) -> None:
    """Written and read again, the probe gives the same labels, and knows its model and preprocessing."""
    train, test = stores(tmp_path)
    result = linear(train, test, dataset=["cls+mean"])
    result.probe.save(tmp_path / "probe.safetensors")

    found = classify(tmp_path / "probe.safetensors", test, top=2)

    right = [each.labels[0] == each.path.split("/")[0] for each in found]
    assert np.mean(right) == pytest.approx(result.top1)
    assert all(each.probabilities[0] >= each.probabilities[1] for each in found)
    assert Probe.load(tmp_path / "probe.safetensors").attrs["note"] == PREPROCESSING


def test_a_probe_refuses_files_of_another_model(tmp_path: Path) -> None:
    """Vectors of another network are never classified."""
    probe = linear(*stores(tmp_path), dataset=["cls"]).probe
    _, other = stores(tmp_path, model="vitb14")

    with pytest.raises(StoreError, match=r"are not compatible \(model vits14 and vitb14"):
        classify(probe, other)


def test_a_probe_refuses_vectors_of_another_width(tmp_path: Path) -> None:
    """The message gives both widths."""
    probe = linear(*stores(tmp_path), dataset=["cls"]).probe

    with pytest.raises(ConfigError, match="needs vectors of width 12, the input has width 5"):
        probe.probabilities(np.zeros((2, 5), np.float32))


@pytest.mark.parametrize("content", [b"not safetensors", b""])
def test_a_file_that_is_no_probe_is_named(tmp_path: Path, content: bytes) -> None:
    """Any other file gives one sentence."""
    (tmp_path / "x.safetensors").write_bytes(content)

    with pytest.raises(StoreError, match=r"`.*x.safetensors` is not a classifier"):
        Probe.load(tmp_path / "x.safetensors")
