"""`linear-dense`: a linear head on patch tokens that names or measures pixels."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

import dino_extract as dx
from dino_extract.cli.options import AsJson, Overwrite, Quiet, Seed, announce, check_targets, print_json, say, words
from dino_extract.names import counted

EXAMPLES = """Examples:

  dino-extract linear-dense photos.h5 masks/  # segmentation, tested on a fifth

  dino-extract linear-dense train.h5 depths/ test.h5 --task depth"""


def linear_dense(
    train: Annotated[str, typer.Argument(metavar="TRAIN.h5", help="A file made with `--tokens patch`.")],
    targets: Annotated[
        str, typer.Argument(metavar="TARGETS", help="A folder with a mask or a depth map (.png, .npy) for each image, named like it.")
    ],
    test: Annotated[str | None, typer.Argument(metavar="TEST.h5", help="Images to test on. The default is a fifth of TRAIN.h5.")] = None,
    test_targets: Annotated[
        str | None, typer.Argument(metavar="TEST_TARGETS", help="The targets of TEST.h5. The default is TARGETS.")
    ] = None,
    task: Annotated[Literal["segmentation", "depth"], typer.Option(help="Predict a class or a depth for each pixel.")] = "segmentation",
    dataset: Annotated[str, typer.Option(metavar="NAME,...", help="Use these patch tokens, with commas between them.")] = "patch_features",
    depth_scale: Annotated[float, typer.Option(help="Divide stored depths by this number: 1000 for millimetres.")] = 1.0,
    max_depth: Annotated[float, typer.Option(help="Largest depth that can be predicted, in metres.")] = 10.0,
    iterations: Annotated[int, typer.Option(min=1, help="Number of training steps, each with 16 images.")] = 1000,
    seed: Seed = 0,
    save: Annotated[str | None, typer.Option(metavar="FILE.safetensors", help="Save the head, for `DenseHead.load`.")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train a linear head on stored patch tokens for segmentation (mIoU) or depth (RMSE), and test it."""
    check_targets({"classifier": save}, overwrite=overwrite)
    announce("linear head on the patch tokens of {}", train, quiet=quiet)
    result = dx.linear_dense(
        train,
        targets,
        test,
        test_targets,
        task=task,
        dataset=words(dataset),
        depth_scale=depth_scale,
        max_depth=max_depth,
        iterations=iterations,
        seed=seed,
    )
    if result.without_target:
        say(f"note: {counted(result.without_target, 'image')} without a target left out")
    if save:
        result.head.save(save, overwrite=overwrite)
        say(f"head: {save}")
    if as_json:
        print_json(result)
        return
    print("   ".join(f"{name} {value:.4f}" for name, value in result.metrics.items()))
    print(f"{result.num_test:,} test images, {result.num_train:,} training images")
    for code, iou in enumerate(result.class_iou):
        print(f"class {code:3}  IoU {'-' if iou != iou else f'{iou:.4f}'}")
