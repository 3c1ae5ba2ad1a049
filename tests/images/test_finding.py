"""From SOURCE arguments to manifests."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dino_extract.errors import SourceError
from dino_extract.images.containers import ImageError
from dino_extract.images.finding import find_images
from dino_extract.images.reading import read_image_bytes
from dino_extract.images.sources import check_sources
from dino_extract.status import Status
from tests.folders import fill, keys_and_contents


def test_folder_keys_are_relative_and_sorted_by_bytes(tmp_path: Path) -> None:
    """Keys of one folder are POSIX paths relative to it, in the order of their bytes."""
    fill(tmp_path, "b.jpg", "a/z.png", "a.jpg", "a-b.jpg", "B.jpg")

    assert find_images([str(tmp_path)]).keys == [b"B.jpg", b"a-b.jpg", b"a.jpg", b"a/z.png", b"b.jpg"]


def test_missing_source_is_an_error_before_the_search(tmp_path: Path) -> None:
    """An empty folder, a list and a pattern pass the check. A missing path is an error that names it."""
    check_sources([str(tmp_path), "-", "-0", "no/*.jpg"])

    with pytest.raises(SourceError, match="`nowhere` cannot be read: No such file"):
        check_sources([str(tmp_path), "nowhere"])


def test_unusable_source_is_an_error_before_the_search(tmp_path: Path) -> None:
    """The check refuses the same paths as the search: special files, and archives that cannot be read in place."""
    os.mkfifo(tmp_path / "pipe.jpg")
    fill(tmp_path, "x.tar.gz")

    for name in ("pipe.jpg", "x.tar.gz"):
        with pytest.raises(SourceError) as checked:
            check_sources([str(tmp_path / name)])
        with pytest.raises(SourceError) as found:
            find_images(tmp_path / name)
        assert str(checked.value) == str(found.value)


def test_manifest_leads_to_the_files(tmp_path: Path) -> None:
    """Each entry names the file, its size and its modification time."""
    fill(tmp_path, "a.jpg", "sub/b.jpg")
    os.utime(tmp_path / "a.jpg", ns=(1, 123_456_789))

    manifest = find_images([str(tmp_path)])

    assert read_image_bytes(manifest[1]) == b"sub/b.jpg"
    assert (manifest.file_size[0], manifest.file_mtime_ns[0]) == (5, 123_456_789)


def test_other_files_are_skipped_and_counted(tmp_path: Path) -> None:
    """Texts, tables and archives of a folder are left out and counted by suffix; hidden files too."""
    fill(tmp_path, "a.jpg", "x.txt", "y.TXT", "z.csv", "w.tar", ".hidden.jpg", "Thumbs.db", ".git/b.jpg", "__MACOSX/c.jpg")

    manifest = find_images([str(tmp_path)])

    assert manifest.keys == [b"a.jpg"]
    assert manifest.skipped == {".txt": 2, ".csv": 1, ".tar": 1, "hidden": 2, "hidden folder": 2}


def test_unknown_and_missing_suffixes_are_taken(tmp_path: Path) -> None:
    """A file without a suffix, or with an unknown one, gets a row, because it may be an image."""
    fill(tmp_path, "IMG_0001", "scan.xyz", "photo.heic")

    assert find_images([str(tmp_path)]).keys == [b"IMG_0001", b"photo.heic", b"scan.xyz"]


def test_suffixes_take_exactly_these(tmp_path: Path) -> None:
    """`--suffix .heic` takes .heic files whatever their case, and nothing else."""
    fill(tmp_path, "a.heic", "b.HEIC", "c.jpg", "d")

    manifest = find_images([str(tmp_path)], suffixes=["heic"])

    assert manifest.keys == [b"a.heic", b"b.HEIC"]
    assert manifest.skipped == {".jpg": 1, "no suffix": 1}


def test_odd_names_survive(tmp_path: Path) -> None:
    """Names that are not UTF-8, hold a newline, or have 255 bytes lead to their files."""
    names = [b"caf\xe9.jpg", b"new\nline.jpg", b"x" * 251 + b".jpg", b"quote'\".jpg", "\u65e5\u672c.jpg".encode()]
    fill(tmp_path, *names)

    assert keys_and_contents([str(tmp_path)]) == {name: name for name in names}


def test_symlink_loop_ends(tmp_path: Path) -> None:
    """A link to a parent folder adds nothing."""
    fill(tmp_path, "a/b/x.jpg")
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")

    assert find_images([str(tmp_path)]).keys == [b"a/b/x.jpg"]


def test_linked_folder_outside_is_followed(tmp_path: Path) -> None:
    """A link to a folder elsewhere is entered under the link's name. A linked file is an image."""
    fill(tmp_path / "elsewhere", "x.jpg")
    inside = fill(tmp_path / "inside", "a.jpg")
    (inside / "link").symlink_to(tmp_path / "elsewhere")
    (inside / "one.jpg").symlink_to(tmp_path / "elsewhere" / "x.jpg")

    assert find_images([str(inside)]).keys == [b"a.jpg", b"link/x.jpg", b"one.jpg"]


def test_real_folder_wins_over_link_to_it(tmp_path: Path) -> None:
    """A folder that is also reached by a link keeps its real name, wherever the link sorts."""
    fill(tmp_path, "real/x.jpg")
    (tmp_path / "a").symlink_to(tmp_path / "real")

    assert find_images([str(tmp_path)]).keys == [b"real/x.jpg"]


def test_special_files_are_skipped(tmp_path: Path) -> None:
    """A FIFO, a socket and a broken link named like images are counted and never opened."""
    fill(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nowhere")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.jpg"))

        manifest = find_images([str(tmp_path)])

    assert manifest.keys == [b"a.jpg"]
    assert manifest.skipped == {"special file": 2, "broken link or vanished file": 1}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_forbidden_folder_is_noted(tmp_path: Path) -> None:
    """A sub-folder that must not be read is reported and costs only itself."""
    fill(tmp_path, "a.jpg", "private/b.jpg")
    (tmp_path / "private").chmod(0)

    manifest = find_images([str(tmp_path)])

    (tmp_path / "private").chmod(0o700)
    assert manifest.keys == [b"a.jpg"]
    assert any("private" in reason for reason in manifest.skipped)
    assert list(manifest.unread) == [b"private/"]


def test_folder_without_images_is_an_error(tmp_path: Path) -> None:
    """A folder without images is an error that says what was left out."""
    fill(tmp_path, "a.txt")

    with pytest.raises(SourceError, match=r"holds no file that may be an image \(left out: 1 \.txt\)") as caught:
        find_images([str(tmp_path)])

    assert caught.value.hint == "expected folders, images, globs, .tar or .zip archives, or a list of them on stdin"

    fill(tmp_path, "b.zip")
    with pytest.raises(SourceError, match=r"left out: .*1 \.zip") as caught:
        find_images([str(tmp_path)])

    assert caught.value.hint == "archives in a folder are not looked into: name them, for example `photos/*.zip`"


@pytest.mark.parametrize("source", ["missing", "missing/*.jpg"])
def test_missing_source_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """A path or pattern that leads nowhere is an error that shows it."""
    monkeypatch.chdir(tmp_path)

    with pytest.raises(SourceError, match="`missing"):
        find_images([source])


def test_fifo_as_source_is_an_error(tmp_path: Path) -> None:
    """A FIFO given as a source is refused and not opened."""
    os.mkfifo(tmp_path / "pipe.jpg")

    with pytest.raises(SourceError, match="neither a folder nor a regular file"):
        find_images([str(tmp_path / "pipe.jpg")])


def test_typed_paths_are_the_keys_of_several_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With several sources keys are the paths as typed, without `./` and doubled slashes."""
    monkeypatch.chdir(fill(tmp_path, "one/a.jpg", "two/b.jpg", "c.jpg"))

    manifest = find_images(["./one/", "two//", "./c.jpg"])

    assert manifest.keys == [b"c.jpg", b"one/a.jpg", b"two/b.jpg"]
    assert manifest.root == os.fsencode(tmp_path)


def test_glob_takes_images_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quoted pattern is expanded, `**` included, and leaves other files out as a folder does."""
    monkeypatch.chdir(fill(tmp_path, "a/x.jpg", "a/b/y.png", "a/notes.txt"))

    assert find_images(["a/**/*.*"]).keys == [b"a/b/y.png", b"a/x.jpg"]


def test_glob_enters_each_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links to folders above neither repeat the images of `**` nor loop. A folder elsewhere is entered through its link."""
    fill(tmp_path, "p/0.jpg", "p/q/1.jpg", "elsewhere/2.jpg")
    (tmp_path / "p" / "a_loop").symlink_to(tmp_path / "p")
    (tmp_path / "p" / "q" / "loop").symlink_to(tmp_path)
    (tmp_path / "p" / "out").symlink_to(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    expected = [b"p/0.jpg", b"p/out/2.jpg", b"p/q/1.jpg"]

    for pattern in ("p/**/*.jpg", "p/**/*", "p/**", "./p/**/**/*.jpg", str(tmp_path / "p" / "**" / "*.jpg")):
        keys = [os.path.relpath(key, os.fsencode(tmp_path)) if key.startswith(b"/") else key for key in find_images([pattern]).keys]

        assert keys == expected, pattern


def test_glob_skips_links_and_special_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken link and a FIFO that a pattern matches are counted, as in a folder."""
    monkeypatch.chdir(fill(tmp_path, "a.jpg"))
    (tmp_path / "b.jpg").symlink_to("nowhere")
    os.mkfifo(tmp_path / "c.jpg")

    manifest = find_images(["*.jpg"])

    assert manifest.keys == [b"a.jpg"]
    assert manifest.skipped == {"broken link or vanished file": 1, "special file": 1}


def test_link_to_itself_costs_only_itself(tmp_path: Path) -> None:
    """A link to itself does not end the listing of its folder."""
    fill(tmp_path, "a.jpg", "z.jpg")
    (tmp_path / "m.jpg").symlink_to("m.jpg")

    manifest = find_images([str(tmp_path)])

    assert manifest.keys == [b"a.jpg", b"z.jpg"]
    assert manifest.unread == {}


def test_unusable_file_of_a_list_gets_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken link and a FIFO of a list do not end the run: each has a row that fails."""
    monkeypatch.chdir(fill(tmp_path, "a.jpg"))
    (tmp_path / "b.jpg").symlink_to("nowhere")
    os.mkfifo(tmp_path / "c.jpg")

    manifest = find_images(["-"], stdin=io.BytesIO(b"a.jpg\nb.jpg\nc.jpg\n"))

    assert manifest.keys == [b"a.jpg", b"b.jpg", b"c.jpg"]
    for row, status in ((1, Status.VANISHED), (2, Status.UNREADABLE)):
        with pytest.raises(ImageError) as caught:
            read_image_bytes(manifest[row])
        assert caught.value.status == status


def test_listed_archive_that_cannot_be_read_gets_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compressed archive and an invalid tar get a row each, which fails. The rest of the list is read."""
    monkeypatch.chdir(fill(tmp_path, "a.jpg", "b.tar.gz", "c.tar"))

    manifest = find_images(["-"], stdin=io.BytesIO(b"b.tar.gz\nc.tar\na.jpg\n"))

    assert manifest.keys == [b"a.jpg", b"b.tar.gz", b"c.tar"]
    assert manifest.container.tolist() == [-1, -1, -1]


def test_nul_list_without_its_option_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The output of `find -print0` read as lines is an error with the right option as a hint."""
    monkeypatch.chdir(fill(tmp_path, "a.jpg", "b.jpg"))

    with pytest.raises(SourceError, match="has NUL between its paths") as caught:
        find_images(["-"], stdin=io.BytesIO(b"a.jpg\0b.jpg\0"))

    assert caught.value.hint == "give `-0`"


def test_one_source_or_suffix_need_not_be_in_a_list(tmp_path: Path) -> None:
    """One text, bytes object or path is one source, and one text is one suffix."""
    fill(tmp_path, "a.jpg", "b.png")

    for source in (str(tmp_path), os.fsencode(tmp_path), tmp_path):
        assert find_images(source, suffixes=".jpg").keys == [b"a.jpg"]


def test_dots_behind_a_link_lead_to_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`a/link/../x.jpg` is next to the folder that the link leads to, and not `a/x.jpg`."""
    monkeypatch.chdir(fill(tmp_path, "a/x.jpg", "b/x.jpg", "b/c/y.jpg"))
    (tmp_path / "a" / "link").symlink_to(tmp_path / "b" / "c")

    assert find_images(["a/x.jpg", "a/link/../x.jpg", "b/x.jpg"]).keys == [b"a/link/../x.jpg", b"a/x.jpg"]


def test_the_output_file_is_not_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The output of an earlier run is left out of a folder and a glob, whatever it is called."""
    monkeypatch.chdir(fill(tmp_path, "a.jpg", "feats"))

    for source in (".", "*"):
        manifest = find_images([source], leave_out="feats")

        assert manifest.keys == [b"a.jpg"]
        assert manifest.skipped == {"the file that is written": 1}


def test_existing_path_wins_over_glob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose name looks like a pattern is found as a file."""
    monkeypatch.chdir(fill(tmp_path, "a[1].jpg", "a1.jpg"))

    assert find_images(["a[1].jpg"]).keys == [b"a[1].jpg"]


def test_image_reached_twice_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file reached through a folder, by name and by absolute path has one row, under the first name."""
    monkeypatch.chdir(fill(tmp_path, "one/a.jpg"))

    assert find_images(["one", "one/a.jpg", str(tmp_path / "one" / "a.jpg"), "one/../one/a.jpg"]).keys == [b"one/a.jpg"]


@pytest.mark.parametrize(("source", "text"), [("-", b"b.jpg\na.jpg\r\n\nc d.jpg"), ("-0", b"b.jpg\0a.jpg\0c d.jpg\0")])
def test_list_on_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, text: bytes) -> None:
    """Lists are read line by line or up to NUL. A missing end, empty lines and Windows line ends are accepted."""
    monkeypatch.chdir(fill(tmp_path, "a.jpg", "b.jpg", "c d.jpg"))

    assert find_images([source], stdin=io.BytesIO(text)).keys == [b"a.jpg", b"b.jpg", b"c d.jpg"]


def test_newline_in_a_name_survives_the_nul_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`-0` takes names with newlines as they are."""
    monkeypatch.chdir(fill(tmp_path, b"new\nline.jpg"))

    assert find_images(["-0"], stdin=io.BytesIO(b"new\nline.jpg\0")).keys == [b"new\nline.jpg"]


def test_missing_entry_of_a_list_gets_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listed file that was deleted keeps its row, and reading it gives VANISHED."""
    monkeypatch.chdir(fill(tmp_path, "a.jpg"))

    manifest = find_images(["-"], stdin=io.BytesIO(b"a.jpg\ngone.jpg\n"))

    assert manifest.keys == [b"a.jpg", b"gone.jpg"]
    with pytest.raises(ImageError) as caught:
        read_image_bytes(manifest[1])
    assert caught.value.status == Status.VANISHED


def test_list_of_which_nothing_exists_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of which no file exists is an error, because it was made for another folder."""
    monkeypatch.chdir(tmp_path)

    with pytest.raises(SourceError, match="none of the 2 listed paths exists"):
        find_images(["-"], stdin=io.BytesIO(b"a.jpg\nb.jpg\n"))


def test_hostile_archive_is_taken_whole(shared_dir: Path) -> None:
    """All 594 odd files are taken, whatever their names."""
    assert len(find_images([str(shared_dir / "hostile" / "hostile.tar")])) == 594


@pytest.mark.slow
def test_a_million_files_are_listed_in_seconds(tmp_path: Path) -> None:
    """A million files are found within 10 s of processor time, whatever else the machine does, and 300 MB of memory."""
    for folder in range(100):
        directory = tmp_path / f"class_{folder:03d}"
        directory.mkdir()
        for number in range(10_000):
            os.close(os.open(directory / f"photograph_{number:06d}.jpg", os.O_CREAT))
    code = """
import resource, sys, time
from dino_extract.images.finding import find_images
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
count = len(find_images([sys.argv[1]]))
print(count, time.process_time() - start, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""

    output = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True).stdout

    count, seconds, megabytes = output.split()
    print(f"{count} files, {float(seconds):.1f} s, {float(megabytes):.0f} MB")
    assert int(count) == 1_000_000
    assert float(seconds) < 10
    assert float(megabytes) < 300


@pytest.mark.parametrize(
    ("name", "what", "hint"),
    [
        ("list.csv", "a table", "dino-extract embed - -o list.h5 < list.txt"),
        ("my list.txt", "a text file", "dino-extract embed - -o 'my list.h5' < 'my list.txt'"),
        ("movie.MP4", "a film", "ffmpeg -i movie.MP4 frames/%06d.png"),
        ("a.pdf", "not an image", "`--suffix .pdf` takes them as images"),
    ],
)
def test_a_file_of_another_kind_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, what: str, hint: str
) -> None:
    """A list, a table, a film or a document named as a source is an error; `suffixes` takes it all the same."""
    monkeypatch.chdir(fill(tmp_path, name))

    with pytest.raises(SourceError, match=f"`{name}` is {what}") as caught:
        find_images(name)

    assert hint in str(caught.value.hint)
    assert find_images(name, suffixes=Path(name).suffix).keys == [name.encode()]


@pytest.mark.parametrize(
    ("address", "command"),
    [
        ("s3://bucket/images", "aws s3 sync s3://bucket/images images/"),
        ("hf://datasets/x/y", "hf download"),
        ("https://example.org/a.zip", "curl --remote-name https://example.org/a.zip"),
        ("ftp://example.org/a", "copy the images to this machine first"),
    ],
)
def test_an_address_is_refused_with_what_to_do(address: str, command: str) -> None:
    """Images are not read over a network; the hint says how to get them."""
    with pytest.raises(SourceError, match=f"`{address}` is an address") as caught:
        check_sources([address])

    assert command in str(caught.value.hint)
