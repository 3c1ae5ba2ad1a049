"""`linear` and `classify`: train a linear classifier on embeddings, and apply it to new images."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Literal

import typer

from dino_extract.cli.options import AsJson, LabelDepth, Labels, Predictions, Seed, end_with_failures, is_store, print_json, say
from dino_extract.errors import ConfigError
from dino_extract.names import quoted

EXAMPLES = """Examples:

  dino-extract linear train.h5 test.h5 --save probe.safetensors

  dino-extract linear photos.h5 --method sgd             one file: tested on a fifth of it

  dino-extract classify probe.safetensors new.h5         or images: new/*.jpg"""


def linear(
    train: Annotated[str, typer.Argument(metavar="TRAIN.h5", help="Labelled images.")],
    test: Annotated[str | None, typer.Argument(metavar="TEST.h5", help="Images to test on; without it, a fifth of TRAIN.h5.")] = None,
    method: Annotated[
        Literal["logistic", "sgd"], typer.Option(help="Logistic regression by L-BFGS, or heads by SGD over the official learning rates.")
    ] = "logistic",
    inputs: Annotated[
        str | None, typer.Option(help="cls, cls+mean, last4, last4+mean, with commas; by default all that are stored are tried.")
    ] = None,
    labels: Labels = None,
    test_labels: Annotated[str | None, typer.Option(metavar="CSV|H5:DATASET", help="Labels of TEST.h5; by default --labels.")] = None,
    label_depth: LabelDepth = 1,
    per_class: Annotated[int | None, typer.Option(help="Few-shot: train on this many images of each class.")] = None,
    iterations: Annotated[int, typer.Option(min=1, help="Steps of SGD.")] = 12_500,
    seed: Seed = 0,
    save: Annotated[str | None, typer.Option(metavar="FILE.safetensors", help="Keep the classifier for `classify`.")] = None,
    confusion: Annotated[str | None, typer.Option(metavar="FILE.png", help="Draw the confusion matrix.")] = None,
    predictions: Predictions = None,
    as_json: AsJson = False,
) -> None:
    """Train a linear classifier on frozen embeddings and test it.

    Input, regularisation and learning rate are chosen on held-out training images, never on the test images.
    """
    from dino_extract.analysis.probes import linear as analysis  # loads torch, which `--help` must not wait for
    from dino_extract.analysis.probes.scores import printable, table_text, write_answers
    from dino_extract.analysis.vectors.stored import opened
    from dino_extract.analysis.writing import require_place
    from dino_extract.pictures.confusion import draw_confusion, require_confusion_place

    require_place(save, "classifier")
    require_confusion_place(confusion)
    require_place(predictions, "table")
    result = analysis.linear(
        train,
        test,
        method=method,
        dataset=[part.strip() for part in inputs.split(",")] if inputs else (),
        labels=labels,
        test_labels=test_labels,
        label_depth=label_depth,
        per_class=per_class,
        iterations=iterations,
        seed=seed,
    )
    if result.unlabelled:
        say(f"note: {result.unlabelled:,} images without a label are left out")
    if save:
        result.probe.save(save, overwrite=True)
        say(f"classifier: {save}; apply it with `dino-extract classify {quoted(save)} NEW.h5`")
    if confusion:
        draw_confusion(result.confusion, result.probe.classes, confusion)
        say(f"confusion matrix: {confusion}")
    if predictions:
        with opened(test or train) as store:
            write_answers(result.answers, store.paths, result.probe.classes, predictions, overwrite=True)
        say(f"predictions, the surest mistakes first: {predictions}")
    if as_json:
        shown = {name: value for name, value in vars(result).items() if name not in ("probe", "candidates", "chosen", "answers")}
        tried = {"candidates": [asdict(each) for each in result.candidates], "chosen": asdict(result.chosen)}
        table = [asdict(line) for line in result.per_class]
        scores = {"mean_recall": result.mean_recall, "confusion": printable(result.confusion), "per_class": table}
        print_json({**shown, **tried, "classes": result.probe.classes, **scores})
        return
    setting = "C" if method == "logistic" else "learning rate"
    width = max(10, *(len(each.input) for each in result.candidates))
    print(f"{'input':{width}}  {setting:>13}  held-out")
    for each in result.candidates:
        mark = "  chosen" if each is result.chosen else ""
        held_out = "-" if each.held_out != each.held_out else f"{each.held_out:.2%}"  # one image of each class leaves none to hold out
        print(f"{each.input:{width}}  {each.setting:13.3g}  {held_out:>8}{mark}")
    accuracy = f"top-1 {result.top1:.2%}   top-5 {result.top5:.2%}   mean recall {result.mean_recall:.2%}"
    print(f"\n{accuracy}   {result.num_test:,} test images, {result.num_train:,} training images")
    print(f"\n{table_text(result.per_class)}")


def classify(
    probe: Annotated[str, typer.Argument(metavar="PROBE.safetensors", help="Made by `dino-extract linear --save`.")],
    sources: Annotated[list[str], typer.Argument(metavar="FILE.h5|IMAGE...", help="An embedded file, or images to embed first.")],
    top: Annotated[int, typer.Option(min=1, help="Labels per image.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Label images with a classifier trained by `linear`.

    Prints path, label and probability, separated by tabs.
    """
    from dino_extract.analysis.probes import probe as analysis  # loads torch, which `--help` must not wait for

    trained = analysis.Probe.load(probe)
    images = [source for source in sources if not is_store(source)]
    found = [each for source in sources if is_store(source) for each in analysis.classify(trained, source, top=top)]
    failed: list[str] = []
    if images:
        if trained.datasets != ("features",):
            raise ConfigError(
                f"the probe takes {', '.join(trained.datasets)}: images cannot be embedded for it on the fly",
                hint="embed them into a file with the same `--tokens` and `--layers`, and classify that",
            )
        from dino_extract.embedding.pipeline import embed_like  # the model is loaded for images alone

        paths, vectors = embed_like(trained, images, on_failure=lambda path, error: failed.append(f"{path}: {error}"))
        found += analysis.classify_vectors(trained, vectors, paths, top=top)
    if as_json:
        print_json([asdict(each) for each in found])
    else:
        for each in found:
            shown = "\t".join(f"{label}\t{probability:.4f}" for label, probability in zip(each.labels, each.probabilities, strict=True))
            print(f"{each.path}\t{shown}")
    end_with_failures(failed)
