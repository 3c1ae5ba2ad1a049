"""Labels from folders, CSV files and datasets, and what is said where there are none."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pandas
import pytest
import torch

from dino_extract.analysis.vectors.labels import classes_of, encode, folder_labels, labels_of, require_known
from dino_extract.errors import ConfigError, DinoExtractWarning, SourceError
from dino_extract.store import Store, open_store
from tests.analysis.stores import write_store

KEYS = ["train/cat/1.jpg", "train/cat/2.jpg", "train/dog/3.jpg"]


def store_of(tmp_path: Path, keys: list[str] = KEYS, failed: tuple[int, ...] = ()) -> Store:
    """A store of images with these keys."""
    return open_store(write_store(tmp_path / "x.h5", keys, {"features": np.eye(len(keys), 4, dtype=np.float32)}, failed=failed))


def test_the_folder_of_an_image_is_its_label(tmp_path: Path) -> None:
    """By default the nearest folder names the class."""
    assert labels_of(store_of(tmp_path)) == ["cat", "cat", "dog"]


def test_depth_counts_folders_upwards() -> None:
    """Depth 2 is the folder above the nearest one, and an image without it has no label."""
    assert folder_labels(["a/b/c.jpg", "b/c.jpg", "c.jpg"], depth=2) == ["a", "", ""]


def test_depth_zero_is_refused() -> None:
    """There is no folder 0."""
    with pytest.raises(ConfigError, match="counts folders above the image from 1, got 0"):
        folder_labels(["a/b.jpg"], depth=0)


@pytest.mark.parametrize("header", ["", "path,label\n"])
def test_csv_labels_follow_paths(tmp_path: Path, header: str) -> None:
    """A CSV file gives labels by path, in any order and with or without a header; an image it does not name has none."""
    (tmp_path / "labels.csv").write_text(header + "train/dog/3.jpg,wolf\ntrain/cat/1.jpg,lynx\n")

    assert labels_of(store_of(tmp_path), tmp_path / "labels.csv") == ["lynx", "", "wolf"]


@pytest.mark.parametrize("separator", [";", "\t"])
@pytest.mark.parametrize("header", ["", "\ufeff Path {0}n{0}LABEL\r\n"])
def test_semicolons_and_tabs_divide_as_well(tmp_path: Path, separator: str, header: str) -> None:
    """Tables as spreadsheets save them: with a mark in front, commas within cells, and header names in capitals."""
    middle = f"{separator}1,5{separator}" if header else separator
    lines = [f'train/dog/3.jpg{middle}"wolf, grey"', f"train/cat/1.jpg{middle}lynx"]
    (tmp_path / "labels.csv").write_text(header.format(separator) + "\r\n".join(lines), encoding="utf-8", newline="")

    assert labels_of(store_of(tmp_path), tmp_path / "labels.csv") == ["lynx", "", "wolf, grey"]


@pytest.mark.parametrize("labels", [["lynx", None, "wolf"], np.array(["lynx", "", "wolf"]), ("lynx", "late", float("nan"), "wolf")])
def test_labels_may_be_a_list(tmp_path: Path, labels: object) -> None:
    """A list or array gives a label for each embedded image, or for each row of the file; None, NaN and "" are no label."""
    keys = KEYS if len(labels) == 3 else [KEYS[0], "train/cat/10.jpg", *KEYS[1:]]  # type: ignore[arg-type]
    store = store_of(tmp_path, keys, failed=(1,) if len(keys) == 4 else ())

    assert labels_of(store, labels) == ["lynx", "", "wolf"]  # type: ignore[arg-type]


@pytest.mark.parametrize(("labels", "message"), [(["a", "b"], r"the labels have shape \(2,\), `.*` has 3 rows"), ([None] * 3, "no labels")])
def test_a_list_that_labels_nothing_is_refused(tmp_path: Path, labels: list[str], message: str) -> None:
    """Another number of labels than of images, and labels that are all None, are one sentence."""
    with pytest.raises(ConfigError, match=message):
        labels_of(store_of(tmp_path), labels)


def test_labels_may_be_a_dictionary(tmp_path: Path) -> None:
    """Labels by path need no order; an image that is not in it has none, and paths of nothing are refused."""
    store = store_of(tmp_path)

    assert labels_of(store, {"train/dog/3.jpg": 1, "train/cat/1.jpg": None, "train/cat/2.jpg": 0}) == ["", "0", "1"]
    with pytest.raises(SourceError, match=r"the labels name none of the embedded images: they have `3\.jpg`, the file has"):
        labels_of(store, {"3.jpg": "dog"})


@pytest.mark.parametrize(
    "labels",
    [
        pandas.Series(["lynx", None, "wolf"], dtype="string"),
        pandas.Series(["lynx", None, "wolf"], dtype="category"),
        pandas.Series(["lynx", None, "wolf"], index=[5, 3, 1]),
    ],
)
def test_labels_may_be_a_column_of_pandas(tmp_path: Path, labels: pandas.Series) -> None:
    """Whatever its type calls a missing value, that is no label."""
    assert labels_of(store_of(tmp_path), labels) == ["lynx", "", "wolf"]


def test_a_column_with_an_index_of_paths_goes_by_them(tmp_path: Path) -> None:
    """As `table.set_index("path")["label"]` gives it: its order need not be that of the file."""
    labels = pandas.Series({"train/dog/3.jpg": "wolf", "train/cat/2.jpg": None, "train/cat/1.jpg": "lynx"})

    assert labels_of(store_of(tmp_path), labels) == ["lynx", "", "wolf"]


def test_numbers_of_a_tensor_are_their_own_names(tmp_path: Path) -> None:
    """A tensor of classes gives the labels that an array gives."""
    assert labels_of(store_of(tmp_path), torch.tensor([3, 1, 3])) == ["3", "1", "3"]  # type: ignore[arg-type]


def test_a_table_is_no_column(tmp_path: Path) -> None:
    """One label for each row is asked for, also where each row of a table has one."""
    with pytest.raises(ConfigError, match=r"the labels have shape \(3, 1\)"):
        labels_of(store_of(tmp_path), pandas.DataFrame({"label": ["a", "b", "c"]}))  # type: ignore[arg-type]


def test_a_csv_without_labels_is_not_one_of_other_images(tmp_path: Path) -> None:
    """Paths that are right and labels that are empty are two things."""
    (tmp_path / "labels.csv").write_text("train/cat/1.jpg,\ntrain/dog/3.jpg,\n")

    with pytest.raises(ConfigError, match=r"no labels: the 3 images of .* have no label in `.*labels.csv`"):
        labels_of(store_of(tmp_path), tmp_path / "labels.csv")


def test_csv_labels_take_paths_as_our_tables_write_them(tmp_path: Path) -> None:
    """`./` in front, which keeps spreadsheets from running a path as a formula, is no part of the path, unless the store has it too."""
    (tmp_path / "labels.csv").write_text("./=1.jpg,lynx\n./a.jpg,wolf\na.jpg,fox\n")

    assert labels_of(store_of(tmp_path, ["./a.jpg", "=1.jpg", "a.jpg"]), tmp_path / "labels.csv") == ["wolf", "lynx", "fox"]


@pytest.mark.parametrize("folder", ["/photos/", "photos/", "./photos/"])
def test_paths_may_begin_with_the_folder(tmp_path: Path, folder: str) -> None:
    """Paths as people write them, absolute or from the folder above, name images of a file that was made of that folder."""
    (tmp_path / "labels.csv").write_text(f"{folder}train/cat/1.jpg,lynx\n{folder}train/dog/3.jpg,wolf\n")

    assert labels_of(store_of(tmp_path), tmp_path / "labels.csv") == ["lynx", "", "wolf"]


def test_one_folder_is_in_front_of_all_paths(tmp_path: Path) -> None:
    """Where paths as stored are named, others are not searched for under the folder's name: they are other images."""
    store = store_of(tmp_path, ["a.jpg", "photos/a.jpg"])

    assert labels_of(store, {"photos/a.jpg": "inner"}) == ["", "inner"]


def test_unknown_paths_are_reported_where_images_lack_labels(tmp_path: Path) -> None:
    """Unknown paths raise a warning if an image has no label, and none if every image has one."""
    store = store_of(tmp_path)

    with pytest.warns(
        DinoExtractWarning, match=r"the labels have 2 paths that are not .*, such as `a`; 1 images of it, such as `train/cat/2\.jpg`"
    ):
        assert labels_of(store, {"train/cat/1.jpg": "x", "train/dog/3.jpg": "y", "b": "z", "a": "z"}) == ["x", "", "y"]
    assert labels_of(store, {**dict.fromkeys(store.paths, "x"), "elsewhere.jpg": "y"}) == ["x", "x", "x"]


def test_csv_columns_are_found_by_name(tmp_path: Path) -> None:
    """With a header, the columns may stand anywhere."""
    (tmp_path / "labels.csv").write_text("label,size,path\nlynx,3,train/cat/1.jpg\n")

    assert labels_of(store_of(tmp_path), tmp_path / "labels.csv") == ["lynx", "", ""]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("other.jpg,fox\n", "name none of the embedded images: they have `other.jpg`, the file has `train/cat/1.jpg`"),
        ("train/cat/1.jpg\n", "must have a path and a label in every line, got `train/cat/1.jpg`"),
        ("train/cat/1.jpg,a\ntrain/cat/1.jpg,b\n", "give `train/cat/1.jpg` two labels, `a` and `b`"),
    ],
)
def test_a_csv_that_does_not_fit_says_why(tmp_path: Path, text: str, message: str) -> None:
    """A CSV file of other images, of one column, or that contradicts itself is an error."""
    (tmp_path / "labels.csv").write_text(text)

    with pytest.raises(SourceError, match=message):
        labels_of(store_of(tmp_path), tmp_path / "labels.csv")


def test_a_missing_csv_is_named(tmp_path: Path) -> None:
    """The error gives the path and the reason."""
    with pytest.raises(SourceError, match=r"labels `.*none.csv` cannot be read: No such file"):
        labels_of(store_of(tmp_path), tmp_path / "none.csv")


def test_dataset_labels_skip_failed_rows(tmp_path: Path) -> None:
    """A dataset with a label for every row of the file gives those of the embedded images."""
    with h5py.File(tmp_path / "labels.h5", "w") as file:
        file["kind"] = np.array([7, 8, 9])

    assert labels_of(store_of(tmp_path, failed=(1,)), f"{tmp_path}/labels.h5:kind") == ["7", "9"]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("none.h5:kind", r"cannot be read: .*none.h5.*: no such file"),
        ("text.h5:kind", r"cannot be read: `.*text.h5` is not an HDF5 file"),
        ("labels.h5:sort", r"cannot be read: `.*labels.h5` has no dataset `sort`"),
        ("labels.h5:group", r"cannot be read: `.*labels.h5` has no dataset `group`"),
        ("linked.h5:kind", r"cannot be read: `.*linked.h5` links to another file"),
    ],
)
def test_dataset_labels_that_cannot_be_had_are_one_sentence(tmp_path: Path, place: str, message: str) -> None:
    """No file, no HDF5, no such dataset, and a file that leads into another one are errors that name both."""
    (tmp_path / "text.h5").write_text("path,label\n")
    with h5py.File(tmp_path / "labels.h5", "w") as file:
        file["kind"] = np.array([7, 8, 9])
        file.create_group("group")
    with h5py.File(tmp_path / "linked.h5", "w") as file:
        file["kind"] = h5py.ExternalLink(str(tmp_path / "labels.h5"), "kind")

    with pytest.raises(SourceError, match=rf"^labels `.*{place}` {message}"):
        labels_of(store_of(tmp_path), tmp_path / place)


@pytest.mark.parametrize("kind", ["fixed", "variable", "packed"])
def test_dataset_labels_may_be_text(tmp_path: Path, kind: str) -> None:
    """Text of fixed and of variable length, and compressed text, are labels."""
    words = [b"lynx", b"lynx", b"wolf"]
    with h5py.File(tmp_path / "labels.h5", "w") as file:
        if kind == "variable":
            file.create_dataset("kind", data=words, dtype=h5py.string_dtype())
        else:
            file.create_dataset("kind", data=np.array(words), compression="gzip" if kind == "packed" else None)

    assert labels_of(store_of(tmp_path), f"{tmp_path}/labels.h5:kind") == ["lynx", "lynx", "wolf"]


def test_a_dataset_of_another_length_is_refused(tmp_path: Path) -> None:
    """Labels that are not aligned with the rows are never guessed at."""
    with h5py.File(tmp_path / "labels.h5", "w") as file:
        file["kind"] = np.array([7, 8, 9, 10])

    with pytest.raises(ConfigError, match=r"have shape \(4,\), `.*` has 3 rows"):
        labels_of(store_of(tmp_path), f"{tmp_path}/labels.h5:kind")


def test_images_without_a_folder_have_no_labels(tmp_path: Path) -> None:
    """Images that lie in no folder are said to, with what can be done; another depth does not help them."""
    with pytest.raises(ConfigError, match=r"no labels: the 2 images of .* are directly in the source, not in a folder") as caught:
        labels_of(store_of(tmp_path, ["a.jpg", "b.jpg"]))

    assert caught.value.hint == "`--labels FILE.csv` with `path,label` lines, or embed the folder above"


def test_images_in_too_few_folders_have_no_labels(tmp_path: Path) -> None:
    """Where `--label-depth` asks for a folder that is not there, the hint names that option."""
    with pytest.raises(ConfigError, match=r"no labels: the 2 images of .* have no folder 2 above them") as caught:
        labels_of(store_of(tmp_path, ["a/a.jpg", "b/b.jpg"]), depth=2)

    assert "--label-depth" in str(caught.value.hint)


def test_one_class_is_too_few() -> None:
    """A single class is named in the error."""
    with pytest.raises(ConfigError, match="all 2 labelled images have the label `cat`"):
        classes_of(["cat", "", "cat"])


def test_classes_are_sorted_and_encoded() -> None:
    """Codes are positions among the sorted names, and no label is -1."""
    classes = classes_of(["dog", "cat", ""])

    assert classes == ("cat", "dog")
    assert encode(["dog", "", "cat"], classes).tolist() == [1, -1, 0]


def test_test_labels_unknown_to_training_are_named() -> None:
    """A test class that training never saw is an error, not a row of wrong answers."""
    with pytest.raises(ConfigError, match="1 test labels occur in no training image: `fox`"):
        require_known(["cat", "fox", ""], ("cat", "dog"))
