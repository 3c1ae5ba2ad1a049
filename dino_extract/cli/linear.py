"""`linear` and `classify`: train a linear classifier on embeddings, and apply it to new images."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

import dino_extract as dx
from dino_extract import analysis
from dino_extract.cli.options import (
    AsJson,
    Confusion,
    LabelDepth,
    Labels,
    Overwrite,
    PerClass,
    Predictions,
    Quiet,
    Seed,
    TestLabels,
    announce,
    check_targets,
    end_with_failures,
    print_json,
    say,
    words,
    write_predictions,
)
from dino_extract.names import counted, quoted

EXAMPLES = """Examples:

  dino-extract linear train.h5 test.h5 --save probe.safetensors

  dino-extract linear photos.h5 --method sgd  # one file: tested on a fifth of it"""

CLASSIFY_EXAMPLES = """Examples:

  dino-extract classify probe.safetensors new.h5

  dino-extract classify probe.safetensors new/*.jpg --top 3"""


def linear(
    train: Annotated[str, typer.Argument(metavar="TRAIN.h5", help="Labelled images.")],
    test: Annotated[str | None, typer.Argument(metavar="TEST.h5", help="Images to test on. The default is a fifth of TRAIN.h5.")] = None,
    method: Annotated[
        Literal["logistic", "sgd"],
        typer.Option(help="Train by logistic regression (L-BFGS), or by SGD with the official learning rates."),
    ] = "logistic",
    dataset: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help="Try these inputs: cls, cls+mean, last4, last4+mean. The default is all that are stored."),
    ] = None,
    labels: Labels = None,
    test_labels: TestLabels = None,
    label_depth: LabelDepth = 1,
    per_class: PerClass = None,
    iterations: Annotated[int, typer.Option(min=1, help="Number of steps of SGD.")] = 12_500,
    seed: Seed = 0,
    save: Annotated[str | None, typer.Option(metavar="FILE.safetensors", help="Save the classifier for `classify`.")] = None,
    confusion: Confusion = None,
    predictions: Predictions = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train a linear classifier on frozen embeddings and test it.

    Input, regularisation and learning rate are chosen on held-out training images, never on the test images.
    """
    check_targets({"classifier": save, "table": predictions}, overwrite=overwrite, confusion=confusion)
    announce("linear classifier of {}", train, quiet=quiet)
    result = dx.linear(
        train,
        test,
        method=method,
        dataset=words(dataset),
        labels=labels,
        test_labels=test_labels,
        label_depth=label_depth,
        per_class=per_class,
        iterations=iterations,
        seed=seed,
    )
    if result.unlabelled:
        say(f"note: {counted(result.unlabelled, 'image')} without a label left out")
    if save:
        result.probe.save(save, overwrite=overwrite)
        say(f"classifier: {save}; apply it with `dino-extract classify {quoted(save)} NEW.h5`")
    write_predictions(result, test or train, confusion, predictions, overwrite=overwrite)
    if as_json:
        print_json(result)
        return
    setting = "C" if method == "logistic" else "learning rate"
    width = max(10, *(len(each.input) for each in result.candidates))
    print(f"{'input':{width}}  {setting:>13}  held-out")
    for each in result.candidates:
        mark = "  chosen" if each is result.chosen else ""
        held_out = "-" if each.held_out != each.held_out else f"{each.held_out:.2%}"  # NaN if no image of a class can be held out
        print(f"{each.input:{width}}  {each.setting:13.3g}  {held_out:>8}{mark}")
    accuracy = f"top-1 {result.top1:.2%}   top-5 {result.top5:.2%}   mean recall {result.mean_recall:.2%}"
    print(f"\n{accuracy}   {result.num_test:,} test images, {result.num_train:,} training images")
    print(f"\n{analysis.table_text(result.per_class)}")


def classify(
    probe: Annotated[str, typer.Argument(metavar="PROBE.safetensors", help="A classifier made by `dino-extract linear --save`.")],
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="Files of embeddings, or images to embed first.")],
    top: Annotated[int, typer.Option(min=1, help="Show this many labels for each image.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Label images with a classifier trained by `linear`.

    Prints path, label and probability, separated by tabs.
    """
    failed: list[str] = []
    found = dx.classify(probe, sources, top=top, on_failure=lambda image, error: failed.append(f"{image}: {error}"))
    if as_json:
        print_json(found)
    else:
        for each in found:
            shown = "\t".join(f"{label}\t{probability:.4f}" for label, probability in zip(each.labels, each.probabilities, strict=True))
            print(f"{each.path}\t{shown}")
    end_with_failures(failed)
