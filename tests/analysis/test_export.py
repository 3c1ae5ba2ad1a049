"""Every export is read back by the library it is made for."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer import Typer
from typer.testing import CliRunner

from dino_extract.analysis.export.exporting import export
from dino_extract.analysis.export.formats import FORMATS
from dino_extract.cli.export import export as export_command
from dino_extract.errors import ConfigError, StoreError
from dino_extract.names import printable
from dino_extract.store import Store
from tests.analysis.stores import write_store
from tests.pictures.picture_store import make_store, patch_field

NAMES = ["cats/a.jpg", "cats/b.jpg", "dogs/c.jpg", "dogs/d, e.jpg", "dogs/\u00e9\udcff.jpg"]
SHOWN = ["cats/a.jpg", "dogs/c.jpg", "dogs/d, e.jpg", "dogs/\u00e9\\xff.jpg"]  # without the broken one, as text


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Five images, the second of which could not be embedded, one with a comma and one with a stray byte in its name."""
    with make_store(tmp_path, NAMES, broken=["cats/b.jpg"], with_photos=False) as store:
        yield store


def large_store(folder: Path, num_images: int) -> Store:
    """A store of random vectors without photographs."""
    features = np.random.default_rng(1).normal(size=(num_images, 16)).astype(np.float32)
    patches = [patch_field(2, 2, 0)] * num_images
    return make_store(folder, [f"{i:05}.jpg" for i in range(num_images)], features=features, patches=patches, with_photos=False)


def test_npy_is_read_by_numpy_and_its_metadata_by_pyarrow(store: Store, tmp_path: Path) -> None:
    """The array has the rows of the embedded images, the Parquet file their paths and sizes in the same order."""
    parquet = pytest.importorskip("pyarrow.parquet")

    result = export(store, tmp_path / "x.npy")

    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), store.features[:])
    table = parquet.read_table(tmp_path / "x.parquet").to_pydict()
    assert table == {"path": SHOWN, "height": [128] * 4, "width": [128] * 4}
    assert (result.rows, result.left_out) == (4, 1)
    assert result.paths == [str(tmp_path / "x.npy"), str(tmp_path / "x.parquet")]


def test_npy_is_read_by_embedding_reader(store: Store, tmp_path: Path) -> None:
    """embedding-reader, which feeds autofaiss, finds vectors and paths together."""
    embedding_reader = pytest.importorskip(
        "embedding_reader", reason="embedding-reader needs pandas below 3, so `make install` leaves it out"
    )
    (tmp_path / "vectors").mkdir()
    (tmp_path / "metadata").mkdir()
    export(store, tmp_path / "vectors" / "x.npy")
    (tmp_path / "vectors" / "x.parquet").rename(tmp_path / "metadata" / "x.parquet")

    reader = embedding_reader.EmbeddingReader(
        str(tmp_path / "vectors"), file_format="parquet_npy", meta_columns=["path"], metadata_folder=str(tmp_path / "metadata")
    )
    vectors, metadata = next(iter(reader(batch_size=10, show_progress=False)))

    np.testing.assert_array_equal(vectors, store.features[:])
    assert metadata["path"].tolist() == SHOWN


def test_parquet_is_read_by_pandas(store: Store, tmp_path: Path) -> None:
    """Pandas gets a row per image with its vector."""
    pytest.importorskip("pyarrow")
    pandas = pytest.importorskip("pandas")

    export(store, tmp_path / "x.parquet")

    frame = pandas.read_parquet(tmp_path / "x.parquet")
    assert frame["path"].tolist() == SHOWN
    np.testing.assert_array_equal(np.stack(frame["vector"].tolist()), store.features[:])


def test_parquet_says_how_the_vectors_were_made(store: Store, tmp_path: Path) -> None:
    """Model and weights stand in the metadata of the schema."""
    parquet = pytest.importorskip("pyarrow.parquet")

    export(store, tmp_path / "x.parquet")

    metadata = parquet.read_schema(tmp_path / "x.parquet").metadata
    assert metadata[b"model"] == b"vits14"
    assert metadata[b"weights_sha256"] == b"ab" * 32


def test_csv_reads_back_to_the_same_numbers(store: Store, tmp_path: Path) -> None:
    """Python's csv module gets paths with commas whole, and float() gives exactly the stored float32."""
    export(store, tmp_path / "x.csv")

    with open(tmp_path / "x.csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header[:5] == ["path", "height", "width", "f0", "f1"]
    assert [row[0] for row in rows] == SHOWN
    np.testing.assert_array_equal(np.array([row[3:] for row in rows], np.float32), store.features[:])


def test_csv_of_a_half_precision_file_has_the_stored_numbers(tmp_path: Path) -> None:
    """Read by pandas, whose numbers are float64, or as float32, they are those in the file: 0.0999755859375 and not 0.1."""
    pandas = pytest.importorskip("pandas")
    features = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float16)
    features[0, :5] = 0.1, 6e-8, 65504, 1 / 3, 0

    export(write_store(tmp_path / "half.h5", [f"{row}.jpg" for row in range(5)], {"features": features}), tmp_path / "x.csv")

    found = pandas.read_csv(tmp_path / "x.csv", float_precision="round_trip").iloc[:, 3:]
    np.testing.assert_array_equal(found.to_numpy(np.float64), features.astype(np.float64))
    np.testing.assert_array_equal(found.to_numpy(np.float32), features.astype(np.float32))


FORMULAS = ["+1.jpg", "-1.jpg", "=1+2.jpg", "@SUM(A1).jpg", " =1.jpg", "\t=2.jpg", "\uff1d1.jpg", "a;=1.jpg", 'a"=1.jpg', "b/=1.jpg"]


def test_no_cell_of_a_table_is_a_formula(tmp_path: Path) -> None:
    """However a spreadsheet cuts the line, no path begins like a formula, and without `./` each is the path of the store."""
    with make_store(tmp_path, FORMULAS, with_photos=False) as store:
        export(store, tmp_path / "x.csv")
        names = [printable(path) for path in store.paths]

    text = (tmp_path / "x.csv").read_text(encoding="utf-8")
    for separator in ",;\t":
        for row in list(csv.reader(text.splitlines(), delimiter=separator))[1:]:
            assert not row[0].lstrip().startswith(tuple("=+-@\uff1d"))
    paths = [row[0] for row in csv.reader(text.splitlines())][1:]
    assert [path.removeprefix("./") for path in paths] == names
    assert [path for path in paths if path.startswith("./")] == [f"./{name}" for name in names if name[0] in " =+-@\uff1d"]


def test_the_index_of_bags_has_no_formula_either(tmp_path: Path) -> None:
    """Neither the names of bags nor the paths beside them begin like one."""
    with make_store(tmp_path, FORMULAS, with_photos=False) as store:
        export(store, tmp_path / "bags", "bags")

    with open(tmp_path / "bags" / "index.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert not [cell for row in rows for cell in row.values() if cell.lstrip().startswith(tuple("=+-@\uff1d"))]
    assert all((tmp_path / "bags" / f"{row['slide_id']}.h5").exists() for row in rows)


def test_csv_in_half_precision_reads_back_to_the_same_numbers(store: Store, tmp_path: Path) -> None:
    """Numbers written as float16 have at most five digits, and read back as the nearest float16 of the stored ones."""
    export(store, tmp_path / "x.csv", dtype="float16")

    with open(tmp_path / "x.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    np.testing.assert_array_equal(np.array([row[3:] for row in rows], np.float16), store.features[:].astype(np.float16))
    assert max(len(number.lstrip("-0.").replace(".", "")) for row in rows for number in row[3:]) <= 5


def test_h5ad_is_read_by_anndata(store: Store, tmp_path: Path) -> None:
    """Anndata reads matrix, paths, folders and provenance, whole and from disk."""
    anndata = pytest.importorskip("anndata")

    export(store, tmp_path / "x.h5ad")

    table = anndata.read_h5ad(tmp_path / "x.h5ad")
    np.testing.assert_array_equal(table.X, store.features[:])
    assert table.obs_names.tolist() == SHOWN
    assert table.obs["folder"].tolist() == ["cats", "dogs", "dogs", "dogs"]
    assert table.uns["dino_extract"]["model"] == "vits14"
    backed = anndata.read_h5ad(tmp_path / "x.h5ad", backed="r")
    np.testing.assert_array_equal(backed.X[1], store.features[1])
    backed.file.close()


def test_hloc_descriptors_are_unit_vectors_under_the_name_of_the_image(store: Store, tmp_path: Path) -> None:
    """Read as hloc's pairs_from_retrieval does: the parents of all datasets are the names, each with `global_descriptor`."""
    export(store, tmp_path / "x.h5", "hloc")

    names = []
    with h5py.File(tmp_path / "x.h5") as file:
        file.visititems(lambda _, item: names.append(item.parent.name.strip("/")) if isinstance(item, h5py.Dataset) else None)
        found = np.stack([file[name]["global_descriptor"][()] for name in SHOWN])
        size = file["cats/a.jpg"]["image_size"][()].tolist()
    assert sorted(set(names)) == sorted(SHOWN)
    vectors = store.features[:]
    np.testing.assert_allclose(found, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), rtol=1e-6)
    assert size == [128, 128]


def test_ann_benchmarks_neighbours_are_those_of_scikit_learn(tmp_path: Path) -> None:
    """The held-out queries come with the neighbours and cosine distances that scikit-learn finds in `train`."""
    neighbors = pytest.importorskip("sklearn.neighbors")
    with large_store(tmp_path, 300) as store:
        export(store, tmp_path / "x.hdf5", "ann-benchmarks")

    with h5py.File(tmp_path / "x.hdf5") as file:
        attrs = dict(file.attrs)
        train, test, found, distances = (file[name][()] for name in ("train", "test", "neighbors", "distances"))
    want_distances, want = neighbors.NearestNeighbors(n_neighbors=100, metric="cosine").fit(train).kneighbors(test)
    assert attrs == {"type": "dense", "distance": "angular", "dimension": 16, "point_type": "float"}
    assert (train.shape, test.shape, found.dtype) == ((270, 16), (30, 16), np.int32)
    np.testing.assert_array_equal(found, want)
    np.testing.assert_allclose(distances, want_distances, atol=1e-6)


def test_bags_hold_the_patches_of_one_image_as_clam_reads_them(store: Store, tmp_path: Path) -> None:
    """CLAM's Generic_MIL_Dataset reads `features` and `coords` of `slide_id.h5`."""
    export(store, tmp_path / "bags", "bags")

    with h5py.File(tmp_path / "bags" / "dogs__c.h5") as file:
        features, coords = file["features"][:], file["coords"][:]
        assert file["coords"].attrs["patch_size"] == 14
    np.testing.assert_array_equal(features, store.patch_features[1].reshape(64, -1))
    # 128 x 128 resized to 128 for a crop of 112: the first patch begins at pixel 8
    assert coords[:3].tolist() == [[8, 8], [22, 8], [36, 8]]
    assert coords.dtype == np.int64


def test_bags_name_their_images_in_an_index(store: Store, tmp_path: Path) -> None:
    """`index.csv` says which image a bag is of."""
    export(store, tmp_path / "bags", "bags")

    with open(tmp_path / "bags" / "index.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == SHOWN
    assert all((tmp_path / "bags" / f"{row['slide_id']}.h5").exists() for row in rows)


def test_bags_of_an_earlier_export_do_not_stay_among_new_ones(store: Store, tmp_path: Path) -> None:
    """`overwrite` deletes the bags of an earlier export, and keeps other files."""
    export(store, tmp_path / "bags", "bags")
    (tmp_path / "bags" / "mine.h5").write_bytes(b"")
    (tmp_path / "other").mkdir()
    with make_store(tmp_path / "other", ["cats/a.jpg", "new.jpg"], with_photos=False) as other:
        export(other, tmp_path / "bags", "bags", overwrite=True)

    assert sorted(path.name for path in (tmp_path / "bags").iterdir()) == ["cats__a.h5", "index.csv", "mine.h5", "new.h5"]


def test_bags_of_equal_stems_do_not_overwrite_each_other(tmp_path: Path) -> None:
    """`a.jpg` and `a.png` become two bags."""
    with make_store(tmp_path, ["a.jpg", "a.png"], with_photos=False) as store:
        export(store, tmp_path / "bags", "bags")

    assert len(list((tmp_path / "bags").glob("*.h5"))) == 2


def test_a_bag_never_takes_the_name_of_another(tmp_path: Path) -> None:
    """Neither a number put behind one name, nor a change of case, makes it the name of another image's bag."""
    names = ["A_B.png", "a b-3.png", "a b.png", "a_b.png"]  # all but the first two would be `a_b`, the last `a_b-3` next
    with make_store(tmp_path, names, with_photos=False) as store:
        assert store.paths == names
        export(store, tmp_path / "bags", "bags")

    with open(tmp_path / "bags" / "index.csv", newline="", encoding="utf-8") as file:
        bag_of = {row["path"]: row["slide_id"] for row in csv.DictReader(file)}
    assert list(bag_of) == names
    assert len({bag.lower() for bag in bag_of.values()}) == 4
    assert {path.stem for path in (tmp_path / "bags").glob("*.h5")} == set(bag_of.values())


@pytest.mark.parametrize(("size", "policy", "first"), [((200, 100), "pad", [-50, 0]), ((200, 100), "squash", [0, 0])])
def test_bag_coordinates_are_pixels_of_the_file(tmp_path: Path, size: tuple[int, int], policy: str, first: list[int]) -> None:
    """Where the image was padded the first patch lies outside it, where it was squashed the last ends at its edge."""
    attrs = json.loads(preprocessing_of(tmp_path / "plain"))
    with make_store(tmp_path, ["a.jpg"], attrs={"preprocessing": json.dumps({**attrs, "policy": policy})}, size=size) as store:
        export(store, tmp_path / "bags", "bags")

    with h5py.File(tmp_path / "bags" / "a.h5") as file:
        coords = file["coords"][:]
    assert coords[0].tolist() == first
    assert coords[-1, 1] == 175  # the last of eight patches over 200 pixels


def preprocessing_of(folder: Path) -> str:
    """The record of the sample's preprocessing."""
    folder.mkdir()
    with make_store(folder, ["a.jpg"], with_photos=False) as store:
        return str(store.attrs["preprocessing"])


@pytest.mark.parametrize("format_", FORMATS)
def test_nothing_is_overwritten_unasked(format_: str, tmp_path: Path) -> None:
    """A second export in the same place is refused, and goes through with `overwrite`."""
    with large_store(tmp_path, 20) as store:
        export(store, tmp_path / "x", format_)

        with pytest.raises(ConfigError, match="is already there"):
            export(store, tmp_path / "x", format_)

        assert export(store, tmp_path / "x", format_, overwrite=True).rows == 20


@pytest.mark.parametrize("format_", FORMATS)
def test_the_size_of_blocks_changes_nothing(format_: str, tmp_path: Path) -> None:
    """Read in blocks of 7 rows, every format holds what it holds when read in one."""
    with large_store(tmp_path, 50) as store:
        whole = export(store, tmp_path / "whole", format_)
        pieces = export(store, tmp_path / "pieces", format_, block_rows=7)

    assert vectors_of(pieces.paths[0], format_).tobytes() == vectors_of(whole.paths[0], format_).tobytes()


def vectors_of(path: str, format_: str) -> np.ndarray:
    """The numbers in an export."""
    if format_ == "npy":
        return np.load(path)
    if format_ == "csv":
        return np.frombuffer(Path(path).read_bytes(), np.uint8)
    if format_ == "parquet":
        column = pytest.importorskip("pyarrow.parquet").read_table(path)["vector"]
        return np.array(column.to_pylist(), np.float32)
    if format_ == "bags":
        path = f"{path}/00007.h5"
    found: list[np.ndarray] = []
    with h5py.File(path) as file:
        file.visititems(lambda _, item: found.append(item[()]) if isinstance(item, h5py.Dataset) and item.dtype.kind == "f" else None)
    return np.concatenate([each.ravel() for each in found])


@pytest.mark.parametrize("format_", FORMATS)
def test_a_file_may_have_any_name(format_: str, tmp_path: Path) -> None:
    """Neither bytes that are not UTF-8 nor a colon, as of an address, keep another library from writing there."""
    folder = tmp_path / os.fsdecode(b"\xff:")
    folder.mkdir()
    with make_store(tmp_path, [f"{number}.jpg" for number in range(10)], with_photos=False) as store:
        result = export(store, folder / "x", format_)

    assert result.paths[0] == str(folder / "x")
    assert all(Path(path).exists() for path in result.paths)


def test_float16_is_written_where_it_is_asked_for(store: Store, tmp_path: Path) -> None:
    """`dtype="float16"` halves the array."""
    pytest.importorskip("pyarrow")

    export(store, tmp_path / "x.npy", dtype="float16")

    assert np.load(tmp_path / "x.npy").dtype == np.float16


def test_numbers_that_float16_cannot_hold_are_refused(tmp_path: Path) -> None:
    """An overflow is an error and leaves no file behind."""
    pytest.importorskip("pyarrow")
    features = np.full((5, 8), 1e6, np.float32)

    with make_store(tmp_path, features=features) as store, pytest.raises(ConfigError, match="float16 cannot hold"):
        export(store, tmp_path / "x.npy", dtype="float16")

    assert [path.name for path in tmp_path.glob("x*")] == []


def test_an_unknown_format_is_refused(store: Store, tmp_path: Path) -> None:
    """Without a format the suffix chooses one, and `.h5` could be either of two."""
    with pytest.raises(ConfigError, match=r"cannot export to `\.xyz`") as caught:
        export(store, tmp_path / "x.xyz")
    assert "the formats are npy, parquet, csv, h5ad, hloc, ann-benchmarks, bags" in str(caught.value.hint)
    with pytest.raises(ConfigError, match=r"`format` must be one of npy, parquet, csv, h5ad, hloc, ann-benchmarks, bags, but neither"):
        export(store, tmp_path / "x.h5")


@pytest.mark.parametrize(("format_", "name"), [("npy", "x.parquet"), ("csv", "x.npy"), ("bags", "x.h5ad")])
def test_a_suffix_of_another_format_is_refused(store: Store, tmp_path: Path, format_: str, name: str) -> None:
    """`npy` with `x.parquet` is a contradiction, and nothing is written."""
    with pytest.raises(ConfigError, match=rf"`.*{name}` has the suffix of `{name[2:]}`, but `format` is `{format_}`"):
        export(store, tmp_path / name, format_)

    assert not list(tmp_path.glob("x*"))


def test_bags_of_whole_image_vectors_are_refused(store: Store, tmp_path: Path) -> None:
    """A bag needs patch tokens."""
    with pytest.raises(ConfigError, match="`features` has one vector per image"):
        export(store, tmp_path / "bags", "bags", dataset="features")


def test_a_dataset_that_is_not_there_is_refused(store: Store, tmp_path: Path) -> None:
    """The error lists what the file has."""
    with pytest.raises(StoreError, match="has no `mean_features`, only features, patch_features"):
        export(store, tmp_path / "x.csv", dataset="mean_features")


def test_too_few_images_for_queries_are_refused(store: Store, tmp_path: Path) -> None:
    """ann-benchmarks holds a tenth of the images out."""
    with pytest.raises(ConfigError, match="4 images are too few"):
        export(store, tmp_path / "x.hdf5", "ann-benchmarks")


def test_an_unfinished_file_is_refused(tmp_path: Path) -> None:
    """Half a file is not exported."""
    with make_store(tmp_path, is_finished=False) as store, pytest.raises(StoreError, match="is not finished"):
        export(store, tmp_path / "x.csv")


def test_a_folder_that_cannot_be_written_is_one_sentence(store: Store) -> None:
    """An impossible output path is an error that names it."""
    with pytest.raises(ConfigError, match=r"`/proc/none/x\.csv` cannot be written"):
        export(store, "/proc/none/x.csv")


def test_the_command_prints_what_it_wrote(store: Store, tmp_path: Path) -> None:
    """Standard output is the path, standard error says what was left out."""
    app = Typer()
    app.command()(export_command)

    result = CliRunner().invoke(app, [store.path, "--to", "csv"])

    assert result.stdout == f"{tmp_path / 'photos.csv'}\n"
    assert result.stderr == "4 images, 1 failed image left out\n"
