"""`linear-dense`: how well a linear head on patch tokens names or measures pixels."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from dino_extract.cli.options import AsJson, Seed, print_json, say

EXAMPLES = """Examples:

  dino-extract linear-dense photos.h5 masks/                       segmentation, tested on a fifth

  dino-extract linear-dense train.h5 depths/ --task depth --test test.h5 --depth-scale 1000"""


def linear_dense(
    train: Annotated[str, typer.Argument(metavar="TRAIN.h5", help="Embedded with `--tokens patch`.")],
    targets: Annotated[str, typer.Argument(metavar="FOLDER", help="A mask or depth picture (.png, .npy) for each image, by its key.")],
    test: Annotated[str | None, typer.Option(metavar="TEST.h5", help="Images to test on; by default a fifth of TRAIN.h5.")] = None,
    test_targets: Annotated[str | None, typer.Option(metavar="FOLDER", help="Targets of TEST.h5; by default the same folder.")] = None,
    task: Annotated[Literal["segmentation", "depth"], typer.Option(help="A class, or a depth, for each pixel.")] = "segmentation",
    datasets: Annotated[str, typer.Option(help="Patch tokens to use, with commas.")] = "patch_features",
    depth_scale: Annotated[float, typer.Option(help="Stored depths are divided by this: 1000 for millimetres.")] = 1.0,
    max_depth: Annotated[float, typer.Option(help="The largest depth that can be answered.")] = 10.0,
    iterations: Annotated[int, typer.Option(min=1, help="Steps of training, 16 images each.")] = 1000,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Train a linear head on stored patch tokens for segmentation (mIoU) or depth (RMSE), and test it."""
    from dino_extract.analysis.probes import linear_dense as analysis  # loads torch, which `--help` must not wait for

    result = analysis.linear_dense(
        train,
        targets,
        test,
        test_targets,
        task=task,
        dataset=[part.strip() for part in datasets.split(",")],
        depth_scale=depth_scale,
        max_depth=max_depth,
        iterations=iterations,
        seed=seed,
    )
    if result.without_target:
        say(f"note: {result.without_target:,} images without a target picture are left out")
    if as_json:
        print_json(result)
        return
    print("   ".join(f"{name} {value:.4f}" for name, value in result.metrics.items()))
    print(f"{result.num_test:,} test images, {result.num_train:,} training images")
    for code, iou in enumerate(result.class_iou):
        print(f"class {code:3}  IoU {'-' if iou != iou else f'{iou:.4f}'}")
