"""A run ends with the same weights however often it was stopped, and stops by itself when something is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dino_extract.errors import (
    CollapsedError,
    ConfigError,
    DivergedError,
    ExitCode,
    GpuMemoryError,
    PreemptedError,
    RunBusyError,
    SourceError,
)
from dino_extract.finetuning.data import Order, Share
from dino_extract.finetuning.loop import train
from dino_extract.finetuning.output import RunFolder
from dino_extract.finetuning.setup import choose_device, completed
from dino_extract.finetuning.step import TrainingStep
from dino_extract.weights.loading import load
from tests.finetuning import runs

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-two small JPEGs."""
    return runs.make_pictures(tmp_path_factory.mktemp("photos") / "pictures", 22)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# Embeddings that spread fast, so that the effective rank rises.
SPREADING: dict[str, Any] = {
    "objective__koleo_loss_weight": 10,
    "schedule__momentum_teacher": 0.5,
    "schedule__warmup_steps": 0,
    "monitor__every_steps": 3,
}


def newest_state(output: Path) -> dict[str, Any]:
    """The newest checkpoint of a run."""
    return torch.load(sorted((output / "checkpoints").glob("step-*.pt"))[-1], weights_only=True)


def metrics(output: Path) -> list[dict[str, Any]]:
    """The lines of figures of a run, without those that tell the time."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("images_per_s", "input_wait_share")} for line in lines]


def assert_equal(one: Any, other: Any) -> None:
    """Two trees are equal to the bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for first, second in zip(one, other, strict=True):
            assert_equal(first, second)
    else:
        assert one == other


def test_a_killed_run_continues_to_the_same_weights(pictures: Path, tmp_path: Path) -> None:
    """Twenty steps straight equal ten steps, SIGKILL and the same command again: weights, optimizer, figures, all to the bit."""
    options: dict[str, Any] = {"steps": 20, "checkpoint_steps": 5, "drop_path_rate": 0.3, "monitor__every_steps": 10}
    train(runs.small_config(pictures, tmp_path / "straight", **options))
    config = runs.small_config(pictures, tmp_path / "killed", **options)

    process = runs.start_process(config, tmp_path)
    while not (tmp_path / "killed/checkpoints/step-0000010.pt").exists():
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    done = newest_state(tmp_path / "killed")["step"]
    train(config)

    assert 10 <= done < 20
    assert_equal(newest_state(tmp_path / "killed"), newest_state(tmp_path / "straight"))
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "straight")


def test_a_signal_saves_and_ends_with_try_again(pictures: Path, tmp_path: Path) -> None:
    """SIGUSR1 during step 3 ends the run after that step, saved, with exit code 75."""
    config = runs.small_config(pictures, tmp_path / "run", steps=50, checkpoint_steps=50, monitor__every_steps=50)

    def interrupt(line: str) -> None:
        if line.startswith("step 2/"):
            os.kill(os.getpid(), signal.SIGUSR1)

    with pytest.raises(PreemptedError, match="stopped by a signal after step 2 of 50") as stopped:
        train(config, interrupt)

    assert stopped.value.exit_code == ExitCode.TRY_AGAIN
    assert newest_state(tmp_path / "run")["step"] == 2


def test_a_run_stopped_by_a_signal_continues_as_if_it_had_not_been(pictures: Path, tmp_path: Path) -> None:
    """Stopped between two looks and two lines of figures, a run ends with the looks, figures and weights of an undisturbed one."""
    options: dict[str, Any] = {"steps": 7, "log_steps": 5, "checkpoint_steps": 50, "monitor__every_steps": 3}
    train(runs.small_config(pictures, tmp_path / "straight", **options))
    config = runs.small_config(pictures, tmp_path / "stopped", **options)

    def interrupt(line: str) -> None:
        if line.startswith("evaluation after step 3"):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(PreemptedError, match="stopped by a signal after step 4 of 7"):
        train(config, interrupt)
    train(config)

    assert [int(look["step"]) for look in newest_state(tmp_path / "stopped")["evaluations"]] == [0, 3, 6, 7]
    assert_equal(newest_state(tmp_path / "stopped"), newest_state(tmp_path / "straight"))
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "straight")


def test_images_found_unreadable_before_a_stop_stay_on_the_list(tmp_path: Path) -> None:
    """A run that is continued for its last step lists the broken images that only the steps before have met."""
    folder = runs.make_pictures(tmp_path / "pictures", 24, broken=2)
    config = runs.small_config(folder, tmp_path / "run", seed=2, steps=7, log_steps=100, monitor__every_steps=4)
    order = Order(24, 4, config.seed)
    assert [step for step in range(7) if {22, 23} & set(order.rows(step))] == [1, 2]

    def interrupt(line: str) -> None:
        if line.startswith("evaluation after step 4"):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(PreemptedError, match="after step 5 of 7"):
        train(config, interrupt)
    summary = train(config)

    assert summary.unreadable == 2
    assert [line.split("\t")[0] for line in (tmp_path / "run/unreadable.tsv").read_text().splitlines()] == ["022.jpg", "023.jpg"]


def test_broken_images_are_replaced_and_counted(tmp_path: Path) -> None:
    """With 2 of 24 images cut in half the run goes through all its steps and lists both."""
    folder = runs.make_pictures(tmp_path / "pictures", 24, broken=2)

    summary = train(runs.small_config(folder, tmp_path / "run", steps=6))

    assert summary.unreadable == 2
    assert [line.split("\t")[0] for line in (tmp_path / "run/unreadable.tsv").read_text().splitlines()] == ["022.jpg", "023.jpg"]
    assert metrics(tmp_path / "run")[-2]["step"] == 6


def test_divergence_stops_the_run_and_says_so(pictures: Path, tmp_path: Path) -> None:
    """A learning rate that makes gradients infinite stops the run with the losses and where the last good weights are."""
    options: dict[str, Any] = {"optim__base_lr": 1e30, "schedule__warmup_steps": 0, "monitor__images": 0, "checkpoint_steps": 20}
    config = runs.small_config(pictures, tmp_path / "run", steps=20, **options)

    with pytest.raises(DivergedError, match=r"training diverged at step \d+: the gradient of .* is NaN or infinite \(losses: dino_local"):
        train(config)

    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "run/model.safetensors").values())


def test_embeddings_that_are_not_finite_stop_the_run_before_it_is_saved(pictures: Path, tmp_path: Path) -> None:
    """A look at embeddings that are NaN ends the run, and the newest checkpoint is from before."""
    options: dict[str, Any] = {
        "optim__base_lr": 1e30,
        "schedule__warmup_steps": 0,
        "monitor__every_steps": 1,
        "schedule__momentum_teacher": 0.0,
    }

    with pytest.raises(DivergedError, match="embeddings are NaN or infinite"):
        train(runs.small_config(pictures, tmp_path / "run", steps=20, checkpoint_steps=20, **options))

    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "run/model.safetensors").values())


def test_the_result_loads_as_a_model_without_further_words(pictures: Path, tmp_path: Path) -> None:
    """`model.safetensors` in the run's folder is the averaged backbone, with its own architecture and size in the header."""
    train(runs.small_config(pictures, tmp_path / "run"))

    loaded = load(weights=tmp_path / "run")

    want = {
        name.removeprefix("backbone."): tensor for name, tensor in newest_state(tmp_path / "run")["average"].items() if "head" not in name
    }
    assert_equal(dict(loaded.module.state_dict()), want)
    assert loaded.name == "tiny"
    assert loaded.size == 28


def test_the_best_look_is_a_model_too(pictures: Path, tmp_path: Path) -> None:
    """`best.safetensors` has the average that the look with the highest figure saw, and says as much about itself as the result does."""
    train(runs.small_config(pictures, tmp_path / "run", steps=6, seed=1, optim__base_lr=0.01, **SPREADING))
    looks = newest_state(tmp_path / "run")["evaluations"]
    best = max(looks, key=lambda look: look["effective_rank"])
    assert [look["step"] for look in looks] == [0, 3, 6]
    assert best["step"] == 3

    loaded, checkpoint = load(weights=tmp_path / "run/best.safetensors"), load(weights=tmp_path / "run/checkpoints/best.pt")

    state = torch.load(tmp_path / "run/checkpoints/step-0000003.pt", weights_only=True)["average"]
    want = {name.removeprefix("backbone."): tensor for name, tensor in state.items() if "head" not in name}
    assert_equal(dict(loaded.module.state_dict()), want)
    assert_equal(dict(checkpoint.module.state_dict()), want)
    assert (loaded.name, loaded.size, loaded.licence) == ("tiny", 28, load(weights=tmp_path / "run").licence)


def test_a_run_without_a_monitor_has_no_best_look(pictures: Path, tmp_path: Path) -> None:
    """Where nothing is looked at, no step is called the best."""
    train(runs.small_config(pictures, tmp_path / "run", steps=1, monitor__images=0))

    assert not list((tmp_path / "run").rglob("best*"))


def test_a_kill_right_after_the_last_checkpoint_costs_no_result(pictures: Path, tmp_path: Path) -> None:
    """The same command writes what such a kill has left unwritten: the result, and the best look where it was the last."""
    config = runs.small_config(pictures, tmp_path / "run", steps=3, **SPREADING)
    train(config)
    want = load(weights=tmp_path / "run")
    results = [tmp_path / "run" / name for name in ("model.safetensors", "best.safetensors", "checkpoints/best.pt")]
    for path in results:
        path.unlink()

    train(config)

    for path in results:
        assert_equal(dict(load(weights=path).module.state_dict()), dict(want.module.state_dict()))


def test_only_heads_learn_during_the_head_warm_up(pictures: Path, tmp_path: Path) -> None:
    """Starting from trained weights, the backbone is still the same after the warm-up, and another one at the end."""
    train(runs.small_config(pictures, tmp_path / "start", steps=1))
    options: dict[str, Any] = {
        "weights": str(tmp_path / "start"),
        "from_scratch": False,
        "head_warmup_steps": 3,
        "monitor__every_steps": 3,
        "objective__anchor_loss_weight": 1.0,
    }
    config = runs.small_config(pictures, tmp_path / "run", steps=6, checkpoint_steps=3, **options)
    lines: list[str] = []

    train(config, lines.append)

    warm = torch.load(tmp_path / "run/checkpoints/step-0000003.pt", weights_only=True)["student"]
    start, end = load(weights=tmp_path / "start").module.state_dict(), newest_state(tmp_path / "run")["student"]
    name = "blocks.0.attn.qkv.weight"
    assert torch.equal(warm[f"backbone.{name}"], start[name])
    assert not torch.equal(end[f"backbone.{name}"], start[name])
    assert lines[0].startswith("loaded 176 of 176 weights of `tiny`")


def test_a_phase_with_larger_crops_starts_where_the_run_before_ended(pictures: Path, tmp_path: Path) -> None:
    """With `keep_heads` student, average and heads of the other run are there at step 0, and nothing is warmed up."""
    train(runs.small_config(pictures, tmp_path / "first", steps=3))
    options: dict[str, Any] = {"weights": str(tmp_path / "first"), "keep_heads": True, "from_scratch": False}

    train(runs.small_config(pictures, tmp_path / "second", steps=1, crops__global_crops_size=42, **options))

    start = torch.load(tmp_path / "second/checkpoints/step-0000000.pt", weights_only=True)
    end = newest_state(tmp_path / "first")
    assert_equal(start["student"], end["student"])
    assert_equal(start["average"], end["average"])
    assert not torch.equal(start["student"]["dino_head.last_layer.weight_v"], start["average"]["dino_head.last_layer.weight_v"])


def test_keeping_heads_that_are_not_there_is_refused(pictures: Path, tmp_path: Path) -> None:
    """Without a run to take heads from, or with one that has no checkpoints, `keep_heads` ends with a sentence."""
    with pytest.raises(ConfigError, match="`keep_heads` needs `weights`"):
        train(runs.small_config(pictures, tmp_path / "run", keep_heads=True))
    train(runs.small_config(pictures, tmp_path / "first", steps=1))
    weights = str(tmp_path / "first/model.safetensors")
    with pytest.raises(ConfigError, match="needs a run with checkpoints"):
        train(runs.small_config(pictures, tmp_path / "second", weights=weights, keep_heads=True, from_scratch=False))


def test_distillation_leaves_the_teacher_alone(pictures: Path, tmp_path: Path) -> None:
    """A student learns from a frozen teacher whose backbone is the given one to the bit at the end."""
    train(runs.small_config(pictures, tmp_path / "teacher", steps=1))

    train(runs.small_config(pictures, tmp_path / "run", distill=str(tmp_path / "teacher"), head_warmup_steps=2, steps=4))

    state, given = newest_state(tmp_path / "run"), load(weights=tmp_path / "teacher").module.state_dict()
    assert_equal({name: state["teacher"][f"backbone.{name}"] for name in given}, dict(given))
    assert metrics(tmp_path / "run")[1]["ibot"] > 0
    taken = load(weights=tmp_path / "run/checkpoints/step-0000004.pt").module.state_dict()
    assert_equal(dict(taken), dict(load(weights=tmp_path / "run").module.state_dict()))


def test_a_phase_after_distillation_keeps_the_average_of_the_student(pictures: Path, tmp_path: Path) -> None:
    """With `keep_heads` and no teacher any more, the average is that of the run before, not its frozen teacher."""
    train(runs.small_config(pictures, tmp_path / "teacher", steps=1))
    train(runs.small_config(pictures, tmp_path / "first", distill=str(tmp_path / "teacher"), head_warmup_steps=1, steps=2))
    options: dict[str, Any] = {"weights": str(tmp_path / "first"), "keep_heads": True, "from_scratch": False}

    train(runs.small_config(pictures, tmp_path / "second", steps=1, **options))

    start = torch.load(tmp_path / "second/checkpoints/step-0000000.pt", weights_only=True)
    assert_equal(start["average"], newest_state(tmp_path / "first")["average"])


def test_a_second_phase_of_distillation_goes_on_with_all_heads(pictures: Path, tmp_path: Path) -> None:
    """With `keep_heads` and the same teacher, student, average and teacher start as the first phase left them; another one is refused."""
    train(runs.small_config(pictures, tmp_path / "teacher", steps=1))
    train(runs.small_config(pictures, tmp_path / "other", steps=1, seed=1))
    train(runs.small_config(pictures, tmp_path / "first", distill=str(tmp_path / "teacher"), head_warmup_steps=1, steps=2))
    options: dict[str, Any] = {"weights": str(tmp_path / "first"), "keep_heads": True, "from_scratch": False, "steps": 1}
    with pytest.raises(ConfigError, match="did not learn from"):
        train(runs.small_config(pictures, tmp_path / "second", distill=str(tmp_path / "other"), **options))

    train(runs.small_config(pictures, tmp_path / "second", distill=str(tmp_path / "teacher"), crops__global_crops_size=42, **options))

    start = torch.load(tmp_path / "second/checkpoints/step-0000000.pt", weights_only=True)
    for name in ("student", "average", "teacher"):
        assert_equal(start[name], newest_state(tmp_path / "first")[name])
    assert_equal(newest_state(tmp_path / "second")["teacher"], start["teacher"])
    assert not (tmp_path / "second/teacher").exists()


def test_heads_of_another_teacher_are_not_taken_for_this_one(pictures: Path, tmp_path: Path) -> None:
    """Heads kept by a run that failed before its first step serve the same command again, and no other teacher under the same name."""
    train(runs.small_config(pictures, tmp_path / "teacher", steps=1))
    options: dict[str, Any] = {"distill": str(tmp_path / "teacher"), "head_warmup_steps": 2, "eval": str(tmp_path / "labelled")}
    config = runs.small_config(pictures, tmp_path / "run", steps=4, **options)
    said: list[str] = []
    for _ in range(2):
        with pytest.raises(SourceError, match="labelled"):
            train(config, said.append)  # fails when the teacher is ready
    assert len([line for line in said if line.startswith("teacher's heads: step 2")]) == 1
    train(runs.small_config(pictures, tmp_path / "other", steps=1, seed=1))
    shutil.copy(tmp_path / "other/model.safetensors", tmp_path / "teacher/model.safetensors")

    train(replace(config, eval=None, head_warmup_steps=1), said.append)

    state, given = newest_state(tmp_path / "run"), load(weights=tmp_path / "other").module.state_dict()
    assert_equal({name: state["teacher"][f"backbone.{name}"] for name in given}, dict(given))
    assert "was made from another teacher or with other settings" in "".join(said)
    assert [path.name for path in (tmp_path / "run/teacher").iterdir()] == ["step-0000001.pt"]


def test_a_teacher_is_not_trained_into_the_folder_of_another_run(pictures: Path, tmp_path: Path) -> None:
    """A folder that is in use, or holds a run with another configuration, is refused before anything is written into it."""
    train(runs.small_config(pictures, tmp_path / "run", steps=1))
    config = runs.small_config(pictures, tmp_path / "run", distill=str(tmp_path / "run"), head_warmup_steps=1, steps=2)

    with pytest.raises(ConfigError, match="holds a run with another configuration"):
        train(config)
    with RunFolder(tmp_path / "busy", config), pytest.raises(RunBusyError):
        train(replace(config, output=str(tmp_path / "busy")))

    assert not (tmp_path / "run/teacher").exists()
    assert not (tmp_path / "busy/teacher").exists()


def test_a_run_that_fails_at_its_start_leaves_the_folder_to_the_next(pictures: Path, tmp_path: Path) -> None:
    """After `keep_heads` without heads to keep, the same folder takes the run without it."""
    train(runs.small_config(pictures, tmp_path / "first", steps=1))
    weights = str(tmp_path / "first/model.safetensors")
    config = runs.small_config(pictures, tmp_path / "second", weights=weights, from_scratch=False, keep_heads=True, steps=1)
    with pytest.raises(ConfigError, match="needs a run with checkpoints"):
        train(config)

    train(replace(config, keep_heads=False))

    assert newest_state(tmp_path / "second")["step"] == 1


def test_a_folder_in_the_home_is_the_same_for_the_run_and_its_continuation(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`~`, which shells leave as it is in `--output=~/run`, is the home for everything that a run writes and reads."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    train(runs.small_config(pictures, tmp_path / "home/teacher", steps=1))
    config = runs.small_config(pictures, Path("~/run"), distill="~/teacher", head_warmup_steps=1, steps=2)

    summary = train(config)
    said: list[str] = []
    train(config, said.append)

    assert "continuing after step 2 of 2" in said
    assert summary.output == tmp_path / "home/run"
    assert (tmp_path / "home/run/teacher").is_dir()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_finished_run_is_not_done_again(pictures: Path, tmp_path: Path) -> None:
    """The same command on a finished run changes no weight, leaves its file alone and trains no step."""
    config = runs.small_config(pictures, tmp_path / "run")
    train(config)
    before, written = newest_state(tmp_path / "run"), (tmp_path / "run/model.safetensors").stat().st_mtime_ns

    lines: list[str] = []
    train(config, lines.append)

    assert_equal(newest_state(tmp_path / "run"), before)
    assert (tmp_path / "run/model.safetensors").stat().st_mtime_ns == written
    assert not [line for line in lines if line.startswith("step ")]


def test_another_configuration_is_refused_with_the_differences(pictures: Path, tmp_path: Path) -> None:
    """A folder with a run of another learning rate is left alone, both rates are named, and the hint has the way to more steps."""
    train(runs.small_config(pictures, tmp_path / "run", steps=1))

    with pytest.raises(ConfigError, match=r"optim\.base_lr was 0\.002 and is now 0\.5") as refused:
        train(runs.small_config(pictures, tmp_path / "run", steps=1, optim__base_lr=0.5))

    assert f"`--weights {tmp_path / 'run'} --keep-heads`" in str(refused.value.hint)


@pytest.mark.parametrize(("option", "name"), [("--global-size", "global_crops_size"), ("--local-size", "local_crops_size")])
def test_crops_of_parts_of_patches_are_refused(pictures: Path, tmp_path: Path, option: str, name: str) -> None:
    """A side that is no multiple of the patch ends with the nearest ones, also when nothing watches the run."""
    config = runs.small_config(pictures, tmp_path / "run", monitor__images=0, **{f"crops__{name}": 50})

    with pytest.raises(ConfigError, match=f"`crops.{name}` must be a multiple of the patch size 14, got 50") as refused:
        train(config)

    assert refused.value.hint == f"for example `{option} 42` or `{option} 56`"


def test_a_place_that_cannot_be_a_folder_is_refused(pictures: Path, tmp_path: Path) -> None:
    """A file where the folder of the run should be is an error with its path."""
    (tmp_path / "run").write_text("notes")

    with pytest.raises(ConfigError, match="run` cannot be the folder of a run: File exists"):
        train(runs.small_config(pictures, tmp_path / "run"))


def test_two_runs_do_not_share_a_folder(pictures: Path, tmp_path: Path) -> None:
    """While a run holds its folder a second one is told to come back later."""
    config = runs.small_config(pictures, tmp_path / "run")

    with (
        RunFolder(tmp_path / "run", config),
        pytest.raises(RunBusyError, match="another process is training"),
        RunFolder(tmp_path / "run", config),
    ):
        pass


def test_a_collapse_stops_the_run_and_gives_the_best_look(pictures: Path, tmp_path: Path) -> None:
    """When every look is below a ratio of the best that nothing can reach, the run stops with the weights of the best look."""
    config = runs.small_config(pictures, tmp_path / "run", steps=30, monitor__every_steps=1, monitor__collapse_ratio=0.99999)
    config = replace(config, optim=replace(config.optim, base_lr=0.3), schedule=replace(config.schedule, momentum_teacher=0.5))

    with pytest.raises(CollapsedError, match="the embeddings collapsed by step") as collapsed:
        train(config)

    best = torch.load(tmp_path / "run/checkpoints/best.pt", weights_only=True)
    assert f"that of step {best['step']}" in collapsed.value.message
    for name in ("model", "best"):
        assert torch.equal(load_file(tmp_path / f"run/{name}.safetensors")["cls_token"], best["average"]["backbone.cls_token"])


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_under_torchrun_train_as_one(pictures: Path, tmp_path: Path, parallel: str) -> None:
    """Two processes with batches of 4 have the losses of one with batches of 8, in the figures and in what a checkpoint keeps for them."""
    options: dict[str, Any] = {"steps": 4, "log_steps": 2, "checkpoint_steps": 1, "monitor__every_steps": 4, "parallel": parallel}
    train(runs.small_config(pictures, tmp_path / "one", batch=8, **options))

    process = runs.start_process(runs.small_config(pictures, tmp_path / "two", batch=4, **options), tmp_path, *TORCHRUN)
    _, said = process.communicate(timeout=300)

    assert process.returncode == 0, said.decode()
    for one, two in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert one["step"] == two["step"]
        if "loss" in one:
            assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    kept = [torch.load(tmp_path / name / "checkpoints/step-0000003.pt", weights_only=True)["losses"] for name in ("one", "two")]
    assert kept[0].shape == (1, 5)
    torch.testing.assert_close(kept[1], kept[0], rtol=1e-4, atol=1e-5)
    best = torch.load(tmp_path / "two/checkpoints/best.pt", weights_only=True)["average"]
    for name, tensor in load_file(tmp_path / "two/best.safetensors").items():
        assert torch.equal(tensor, best[f"backbone.{name}"])


def test_what_any_process_could_not_read_is_counted(tmp_path: Path) -> None:
    """Images that only the second of two processes has met are in the figures and on the list of the run."""
    folder = runs.make_pictures(tmp_path / "pictures", 24, broken=2)
    options: dict[str, Any] = {"steps": 2, "batch": 4, "monitor__images": 0, "seed": 3}
    config = runs.small_config(folder, tmp_path / "run", **options)
    met = [
        {22, 23} & set(np.concatenate([Order(24, 8, config.seed).my_rows(step, Share(4, 1, rank, 2)) for step in (0, 1)], None))
        for rank in (0, 1)
    ]
    assert met == [set(), {22, 23}]

    process = runs.start_process(config, tmp_path, *TORCHRUN)
    _, said = process.communicate(timeout=300)

    assert process.returncode == 0, said.decode()
    assert metrics(tmp_path / "run")[-1]["unreadable"] == 2
    assert [line.split("\t")[0] for line in (tmp_path / "run/unreadable.tsv").read_text().splitlines()] == ["022.jpg", "023.jpg"]


def test_lengths_left_open_become_shares_of_the_run(pictures: Path, tmp_path: Path) -> None:
    """An adaptation of 200 steps warms heads up for 20, and schedules 18 of the other 180 as warm-up."""
    config = runs.small_config(pictures, tmp_path, steps=200, from_scratch=False)

    full = completed(config, Order(22, 4, 0), choose_device("cpu"))

    assert (full.head_warmup_steps, full.schedule.warmup_steps, full.monitor.every_steps) == (20, 18, 10)


@pytest.mark.parametrize(("is_recomputed", "hint"), [(False, "add `--checkpoint-blocks`: .*; or `--batch 2"), (True, "^`--batch 2")])
def test_a_batch_too_large_for_a_gpu_is_a_sentence(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_recomputed: bool, hint: str
) -> None:
    """Where memory runs out in a step the error names the batch, and the hint what takes less."""

    def run_out(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.25 GiB.")

    monkeypatch.setattr(TrainingStep, "backward", run_out)

    with pytest.raises(GpuMemoryError, match="`cpu` does not have enough memory for batches of 4 images") as stopped:
        train(runs.small_config(pictures, tmp_path / "run", checkpoint_blocks=is_recomputed))

    assert re.search(hint + " --accumulation 2` with another `-o` takes about half$", stopped.value.hint or "")


# The compiler looks at every tensor's gradient and hides what torch says about that, but not from pytest.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("option", ["checkpoint_blocks", pytest.param("compile", marks=pytest.mark.slow)])
def test_ways_to_save_memory_or_time_leave_the_losses_as_they_are(pictures: Path, tmp_path: Path, option: str) -> None:
    """Recomputed activations and compiled blocks give the losses of the plain run."""
    train(runs.small_config(pictures, tmp_path / "plain", steps=2))

    train(runs.small_config(pictures, tmp_path / "other", steps=2, **{option: "on" if option == "compile" else True}))

    losses = [[line["loss"] for line in metrics(tmp_path / name) if "loss" in line] for name in ("plain", "other")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
