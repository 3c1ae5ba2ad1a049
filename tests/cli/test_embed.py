"""`embed` as a user meets it."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import h5py
import pytest

from dino_extract.cli.embed import embed
from dino_extract.config import EmbedConfig
from dino_extract.store import open_store, part_path_of
from tests.cli.conftest import Cli
from tests.sample_images import save_pictures

FAST = ["--model", "tiny", "--random-weights", "0", "--size", "28", "--workers", "1", "--dtype", "float32"]
COMMAND = [sys.executable, "-c", "from dino_extract.cli import main; main()"]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of six images in the working directory."""
    save_pictures(tmp_path / "photos", range(6))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def test_a_folder_becomes_a_file_of_its_name(cli: Cli, photos: Path) -> None:
    """`embed photos` writes photos.h5 into the working directory, prints its path on stdout and ends with 0."""
    ran = cli("embed", "photos", *FAST)

    assert (ran.code, ran.out.strip()) == (0, "photos.h5")
    with h5py.File("photos.h5") as file:
        assert file["features"].shape == (6, 192)


def test_random_weights_are_announced(cli: Cli, photos: Path) -> None:
    """Stderr says that features of random weights mean nothing, and the file records the seed."""
    ran = cli("embed", "photos", *FAST)

    assert "warning: random weights" in ran.err
    with open_store("photos.h5") as store:
        assert store.attrs["weights_sha256"] == "random:0"


def test_failed_images_end_with_3_and_are_listed(cli: Cli, photos: Path) -> None:
    """One broken file: exit code 3, one line in `info --failures` with path, status and error."""
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff not more")

    ran = cli("embed", "photos", *FAST)

    assert ran.code == 3
    assert "1 failed" in ran.err
    (line,) = cli("info", "photos.h5", "--failures").out.splitlines()
    path, status, error = line.split("\t")
    assert (path, status) == ("broken.jpg", "unreadable")
    assert error.startswith("decode:")


def test_json_is_the_only_thing_on_stdout(cli: Cli, photos: Path) -> None:
    """`--json` prints the counts of the run for machines."""
    result = json.loads(cli("embed", "photos", "--json", *FAST).out)

    assert (result["path"], result["total"], result["embedded"], result["failed"]) == ("photos.h5", 6, 6, 0)


def test_quiet_prints_the_path_alone(cli: Cli, photos: Path) -> None:
    """`-q` leaves stderr empty."""
    ran = cli("embed", "photos", "-q", *FAST)

    assert (ran.out, ran.err) == ("photos.h5\n", "")


def test_a_dry_run_plans_and_writes_nothing(cli: Cli, photos: Path) -> None:
    """`--dry-run` gives the exact size of the file, and writes nothing."""
    plan = json.loads(cli("embed", "photos", "--dry-run", "--json", *FAST).out)
    assert os.listdir() == ["photos"]

    cli("embed", "photos", *FAST)

    assert plan["nbytes"] == os.path.getsize("photos.h5")
    assert plan["images"] == 6


def test_a_dry_run_counts_what_earlier_runs_left(cli: Cli, photos: Path) -> None:
    """With a finished file only new and changed images are to be embedded. With other settings the run would be refused."""
    cli("embed", "photos", *FAST)
    shutil.copy(photos / "odd" / "0001.png", photos / "new.png")
    (photos / "even" / "0000.png").unlink()
    before = Path("photos.h5").read_bytes()

    plans = [json.loads(cli("embed", "photos", "--dry-run", "--json", *FAST, *words).out) for words in ([], ["--prune"], ["--overwrite"])]
    refused = cli("embed", "photos", "--dry-run", *FAST, "--tokens", "cls,mean")

    assert [(plan["images"], plan["rows"], plan["pending"]) for plan in plans] == [(6, 7, 1), (6, 6, 1), (6, 6, 6)]
    assert refused.code == 1
    assert "made with other settings" in refused.err
    assert Path("photos.h5").read_bytes() == before


def test_a_dry_run_refuses_an_update_that_has_no_room(cli: Cli, photos: Path) -> None:
    """With one more image and a file size limit of 4 kB the plan is refused, as the run would be. With nothing to do it is not."""
    cli("embed", "photos", *FAST)
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); from dino_extract.cli import main; main()"
    plan = [sys.executable, "-c", limited, "embed", "photos", "--dry-run", *FAST]

    done = subprocess.run(plan, capture_output=True, text=True, check=True)
    save_pictures(photos, [99])
    refused = subprocess.run(plan, capture_output=True, text=True)

    assert "0 to embed" in done.stdout
    assert refused.returncode == 1
    assert "the file size limit here is 4,096 bytes" in refused.stderr
    assert sorted(os.listdir()) == ["photos", "photos.h5"]


def test_a_list_on_stdin_may_be_separated_by_nul(photos: Path) -> None:
    """`find -print0 | embed - -0` embeds the listed files, one with a line break in its name too."""
    shutil.copy(photos / "odd" / "0001.png", photos / "line\nbreak.png")
    names = b"photos/even/0000.png\0photos/line\nbreak.png\0"

    subprocess.run([*COMMAND, "embed", "-", "-0", "-o", "list.h5", *FAST], input=names, check=True, capture_output=True)

    with open_store("list.h5") as store:
        assert store.paths == ["photos/even/0000.png", "photos/line\nbreak.png"]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["embed", "nowhere", *FAST], 1, "error: `nowhere` cannot be read: No such file or directory"),
        (["embed", "nowhere", "--model", "vits14", "--offline"], 1, "error: `nowhere` cannot be read"),
        (["embed", "photos", "photos/odd", *FAST], 1, "give it with `-o FILE.h5`"),
        (["embed", "photos", *FAST, "--size", "225"], 1, "image size 225 is not a multiple of the patch size 14"),
        (["embed", "photos", *FAST, "--tokens", "cls,pach"], 1, "takes cls, patch, registers, mean, got `pach`"),
        (["embed", "photos", *FAST, "--device", "cuda:7"], 1, "device `cuda:7` cannot be used"),
        (["embed", "photos", *FAST, "--max-failures", "some"], 1, "must be a count or a percentage, got `some`"),
        (["embed", "photos", *FAST, "--max-failures", "nan%"], 1, "must be a count or a percentage, got `nan%`"),
        (["embed", "photos", "--model", "vits15", "--random-weights", "0"], 1, "there is no model `vits15`"),
        (["embed", "photos", "--preprocess", "stretch", *FAST], 2, "--preprocess"),
        (["embed"], 2, "`SOURCE` is missing"),
        (["info", "photos"], 1, "error: "),
        (["info", "missing.h5"], 1, "error: "),
    ],
)
def test_wrong_input_is_one_clear_sentence(cli: Cli, photos: Path, words: list[str], code: int, says: str) -> None:
    """Each mistake ends with its exit code and says what was expected, never with a traceback."""
    ran = cli(*words)

    assert ran.code == code
    assert says in ran.err
    assert "Traceback" not in ran.err


def test_a_missing_model_is_reported_within_two_seconds(cli: Cli, photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Offline, `embed` names the missing file, its hash and the places it looked in, at once."""
    for variable in ("DINO_EXTRACT_CACHE", "TORCH_HOME", "HF_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "empty"))
    cli("embed", "photos", *FAST)  # so that the imports are not timed
    start = time.monotonic()

    ran = cli("embed", "photos", "--model", "vits14", "--offline")

    assert time.monotonic() - start < 2
    assert ran.code == 1
    assert "b938bf1bc15cd2ec" in ran.err
    assert str(tmp_path / "empty") in ran.err


def test_too_few_file_descriptors_are_one_sentence(photos: Path) -> None:
    """With 9 open files allowed `embed` ends with 1 and a hint, not with a traceback; the same command then continues."""
    limited = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (9, 9)); from dino_extract.cli import main; main()"

    ran = subprocess.run([sys.executable, "-c", limited, "embed", "photos", *FAST], capture_output=True, text=True)

    assert ran.returncode == 1
    assert "too many" in ran.stderr.lower()
    assert "Traceback" not in ran.stderr
    subprocess.run([*COMMAND, "embed", "photos", *FAST], check=True, capture_output=True)


def test_names_that_are_not_utf8_are_printed_as_they_are(photos: Path) -> None:
    """Where stdout takes UTF-8 alone, the bytes of such a name come out unchanged instead of an error."""
    name = b"photos/\xff.png"
    os.link(photos / "even/0000.png", name)
    subprocess.run([*COMMAND, "embed", "photos", *FAST], check=True, capture_output=True)

    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    ran = subprocess.run(
        [*COMMAND, "search", "photos.h5", "photos/even/0000.png", "--top", "7"], env=strict, capture_output=True, check=True
    )

    assert b"  \xff.png\n" in ran.stdout


def test_the_next_command_can_be_copied_for_a_name_that_is_not_utf8(photos: Path) -> None:
    """The command after `next:` runs in a shell, for any name of the file."""
    ran = subprocess.run([*COMMAND, "embed", "photos", "-o", b"caf\xe9 1.h5", *FAST], capture_output=True, check=True)

    (command,) = [line.removeprefix(b"next: dino-extract ") for line in ran.stderr.splitlines() if line.startswith(b"next: ")]
    again = subprocess.run(["bash", "-c", b'"$@" ' + command, "bash", *COMMAND], capture_output=True, check=True)
    assert again.stdout.startswith(b"file            caf\xe9 1.h5\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)])
def test_a_signal_keeps_finished_images_and_says_how_to_continue(photos: Path, number: signal.Signals, code: int) -> None:
    """Ctrl-C ends with 130 and a pre-emption with 75. Both print the command that continues, and it does."""
    save_pictures(photos, range(600), side=300)
    words = ["embed", "photos", *FAST, "--batch", "4"]
    process = subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (os.path.exists("photos.h5.part") and _committed() > 0):
        time.sleep(0.02)

    process.send_signal(number)
    _, err = process.communicate(timeout=60)

    assert process.returncode == code, err
    assert "to continue, run `dino-extract embed photos " in err
    done = _committed()
    assert 0 < done < 600
    again = subprocess.run([*COMMAND, *words, "--json"], check=True, capture_output=True, text=True)
    assert json.loads(again.stdout)["reused"] == done


def test_a_signal_to_every_process_of_a_job_costs_no_image(photos: Path) -> None:
    """A scheduler's signal that reaches the decoders too, before the run and more than once, ends with 75 and marks no image as failed."""
    save_pictures(photos, range(400), side=300)
    words = ["embed", "photos", *FAST, "--batch", "4"]
    process = subprocess.Popen([*COMMAND, *words], stderr=subprocess.PIPE, text=True, start_new_session=True)
    while process.poll() is None and not (os.path.exists("photos.h5.part") and _committed() > 0):
        time.sleep(0.02)

    for _ in range(4):
        for thread in Path(f"/proc/{process.pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                os.kill(int(child), signal.SIGTERM)
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)

    assert (process.returncode, "Traceback" in err) == (75, False), err
    with open_store("photos.h5") as store:
        assert store.failures == []
    again = subprocess.run([*COMMAND, *words], stderr=subprocess.PIPE, text=True)
    assert again.returncode == 0, again.stderr


def test_a_signal_after_the_work_is_not_a_traceback(tmp_path: Path) -> None:
    """A signal while the result is printed ends the process at once, as it ends any other program."""
    script = (
        "import io, os, signal, sys\n"
        "from dino_extract.cli import main\n"
        "class Stderr(io.StringIO):\n"
        "    def write(self, text): os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.argv, sys.stderr = ['dino-extract', 'info', 'none.h5'], Stderr()\n"
        "main()"
    )

    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)

    assert (ran.returncode, ran.stderr) == (-signal.SIGTERM, "")


@pytest.mark.parametrize("place", ["interrupt()", "weakref.finalize(Watched(), interrupt)"])
def test_an_interruption_while_libraries_load_is_one_sentence(place: str) -> None:
    """Ctrl-C in the first second ends with 130 and the command that continues. It is not lost in a finalizer either."""
    script = (
        "import os, signal, sys, weakref\n"
        "class Watched: pass\n"
        "def interrupt(): os.kill(os.getpid(), signal.SIGINT)\n"
        "class Interruption:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == 'typer': {place}\n"
        "sys.meta_path.insert(0, Interruption())\n"
        "sys.argv = ['dino-extract', 'embed', 'photos']\n"
        "from dino_extract.cli import main; main()"
    )

    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert ran.returncode == 130
    assert ran.stderr == "interrupted: what was finished is kept\n\nhint: to continue, run `dino-extract embed photos`\n"


@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_change_nothing(photos: Path, closed: str) -> None:
    """Started without stdin, stdout or stderr, `embed` writes the same file. A mistake still ends with 1."""
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh"]
    subprocess.run([*COMMAND, "embed", "photos", "-o", "usual.h5", *FAST], check=True, capture_output=True)

    ran = subprocess.run([*shell, *COMMAND, "embed", "photos", *FAST])
    wrong = subprocess.run([*shell, *COMMAND, "embed", "nowhere", *FAST], capture_output=True)

    assert (ran.returncode, wrong.returncode, wrong.stdout) == (0, 1, b"")
    assert Path("photos.h5").read_bytes() == Path("usual.h5").read_bytes()


def _committed() -> int:
    with open_store(part_path_of("photos.h5")) as store:
        return store.progress[0]


def test_every_option_of_embedding_is_reachable_from_the_command() -> None:
    """Each field of `EmbedConfig` is a parameter of the command, with the field's default."""
    parameters = inspect.signature(embed).parameters

    assert {field.name: field.default for field in fields(EmbedConfig)}.items() <= {
        name: parameter.default for name, parameter in parameters.items()
    }.items()


def test_help_loads_neither_torch_nor_h5py() -> None:
    """`dino-extract --help` and `embed --help` answer without the heavy libraries."""
    for words in (["--help"], ["embed", "--help"]):
        script = (
            f"import sys; sys.argv = ['dino-extract', *{words}]\n"
            "from dino_extract.cli import main\n"
            "try:\n    main()\nexcept SystemExit:\n    pass\n"
            "heavy = {'torch', 'timm', 'h5py', 'sklearn', 'matplotlib'} & sys.modules.keys()\n"
            "assert not heavy, heavy\n"
        )

        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_a_run_loads_no_library_that_it_can_do_without(photos: Path) -> None:
    """Neither timm nor torch's compiler is imported, which would take longer than a small run."""
    script = (
        "import sys; sys.argv = ['dino-extract', 'embed', 'photos', '-q', '--model', 'tiny', '--size', '28', '--workers', '1']\n"
        "from dino_extract.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch._dynamo', 'torch._inductor', 'timm', 'torchvision', 'sympy'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )

    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["list.csv"], "`list.csv` is a table, not an image"),
        (["s3://bucket/images"], "`s3://bucket/images` is an address"),
        (["photos", "-o", "none/x.h5"], "`none/x.h5` cannot be written: its folder does not exist"),
        (["photos", "--max-failures", "some"], "must be a count or a percentage, got `some`"),
    ],
)
def test_what_cannot_work_is_refused_before_the_weights_are_looked_for(cli: Cli, photos: Path, words: list[str], says: str) -> None:
    """A wrong source, place or option is the first error, though the weights of the model are missing too."""
    (photos.parent / "list.csv").write_text("path,label\n")

    ran = cli("embed", *words, "--offline")

    assert (ran.code, ran.out) == (1, "")
    assert says in ran.err.splitlines()[0]


def test_the_summary_names_the_first_failure(cli: Cli, photos: Path) -> None:
    """One broken image: the summary gives its path and the reason."""
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff not more")

    assert "1 failed (the first: `broken.jpg`, decode: " in cli("embed", "photos", *FAST).err


def test_every_stage_is_announced(cli: Cli, photos: Path) -> None:
    """The first line comes before torch is loaded, and the second says how many images there are."""
    lines = cli("embed", "photos", *FAST).err.splitlines()

    assert lines[:2] == ["finding the images and loading the model", "6 images"]
