"""Every choice of a training run, with the official configuration names; a run's `config.json` is this, complete.

Nothing here imports torch: the command line reads its defaults from these classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from dino_extract.config import Compile, Dtype
from dino_extract.options import Options, option


@dataclass(frozen=True)
class HeadConfig(Options):
    """The shape of a projection head.

    Args:
        n_prototypes: scores that the head gives, K.
        bottleneck_dim: width before the prototypes.
        hidden_dim: width of the hidden layers.
        nlayers: linear layers before the prototypes.
    """

    n_prototypes: int = 65536
    bottleneck_dim: int = 256
    hidden_dim: int = 2048
    nlayers: int = 3


@dataclass(frozen=True)
class ObjectiveConfig(Options):
    """What is minimised.

    Args:
        dino_head: head for CLS tokens.
        ibot_head: head for masked patches; None shares the first ("tied").
        centering: how targets are kept from collapsing.
        sinkhorn_iterations: of Sinkhorn-Knopp.
        center_momentum: share of the old centre kept at each step; only with `centering`.
        student_temp: temperature of the student's softmax.
        dino_loss_weight: of the loss on CLS tokens.
        ibot_loss_weight: of the loss on masked patches.
        koleo_loss_weight: of the spread of CLS tokens, per global crop.
        koleo_over_ranks: search the nearest neighbour in the batch of all ranks, so that the loss does not depend on their number;
            off, within each rank, as in the official code.
        anchor_loss_weight: of the distance to the starting model's features; 0 leaves it out. Not part of DINOv2.
    """

    dino_head: HeadConfig = field(default_factory=HeadConfig)
    ibot_head: HeadConfig | None = None
    centering: Literal["sinkhorn_knopp", "centering"] = "sinkhorn_knopp"
    sinkhorn_iterations: int = 3
    center_momentum: float = 0.9
    student_temp: float = 0.1
    dino_loss_weight: float = 1.0
    ibot_loss_weight: float = 1.0
    koleo_loss_weight: float = 0.1
    koleo_over_ranks: bool = True
    anchor_loss_weight: float = 0.0


@dataclass(frozen=True)
class OptimConfig(Options):
    """How gradients move the student.

    Args:
        base_lr: peak learning rate at a batch of 1024 images; it grows with the square root of the batch.
        adamw_beta1: decay of the gradients' running mean.
        adamw_beta2: decay of their running square.
        layerwise_decay: factor of the learning rate for each block further from the output.
        patch_embed_lr_mult: factor of the learning rate of the patch embedding.
        clip_grad: largest gradient norm of the backbone and of each head, separately.
        head_warmup_lr: peak learning rate, whatever the batch, while only the heads learn.
    """

    base_lr: float = 0.004
    adamw_beta1: float = 0.9
    adamw_beta2: float = 0.999
    layerwise_decay: float = 0.9
    patch_embed_lr_mult: float = 0.2
    clip_grad: float = 3.0
    head_warmup_lr: float = 1e-3


@dataclass(frozen=True)
class ScheduleConfig(Options):
    """What changes over the steps; lengths are in optimizer steps, and None is the share of the run that the official recipe has.

    Args:
        warmup_steps: linear warm-up of the learning rate; None for a tenth of the run.
        min_lr: learning rate at the end.
        weight_decay: at the first step.
        weight_decay_end: at the last.
        momentum_teacher: EMA momentum of the teacher at the first step.
        final_momentum_teacher: at the last.
        warmup_teacher_temp: temperature of the targets at the first step.
        teacher_temp: after `warmup_teacher_temp_steps`.
        warmup_teacher_temp_steps: steps from one to the other; None for three tenths of the run.
        freeze_last_layer_steps: steps at the start in which the prototypes do not move; None for a hundredth of the run.
    """

    warmup_steps: int | None = option(None, least=0)
    min_lr: float = 1e-6
    weight_decay: float = 0.04
    weight_decay_end: float = 0.4
    momentum_teacher: float = 0.992
    final_momentum_teacher: float = 1.0
    warmup_teacher_temp: float = 0.04
    teacher_temp: float = 0.07
    warmup_teacher_temp_steps: int | None = option(None, least=0)
    freeze_last_layer_steps: int | None = option(None, least=0)

    def resolved(self, total_steps: int) -> ScheduleConfig:
        """The same with every length as a number, for a run of `total_steps`."""

        def length(given: int | None, share: float) -> int:
            return round(share * total_steps) if given is None else given

        return replace(
            self,
            warmup_steps=length(self.warmup_steps, 0.1),
            warmup_teacher_temp_steps=length(self.warmup_teacher_temp_steps, 0.3),
            freeze_last_layer_steps=length(self.freeze_last_layer_steps, 0.01),
        )


@dataclass(frozen=True)
class CropConfig(Options):
    """How crops are cut and what the student and the teacher see of them.

    Args:
        global_crops_size: side in pixels, a multiple of the patch size.
        local_crops_size: side in pixels, a multiple of the patch size.
        local_crops_number: local crops of each image; 0 leaves them out.
        global_crops_scale: range of the share of the image's area.
        local_crops_scale: the same for local crops.
        blur: `nominal` blurs the first global crop always, the second with probability 0.1 and local ones with 0.5, as the papers say.
            `released` is what the released weights were trained with: the official code hands the probability of keeping a crop
            sharp to a function that expects the opposite, so the first global crop is never blurred and the second one with
            probability 0.9. `off` blurs nothing: the blur is given in pixels of the crop, and of a crop of 56 pixels it leaves little.
        mask_sample_probability: share of the global crops that have hidden patches.
        mask_ratio_min_max: range of the share of hidden patches in those.
        decode_size: side in pixels of the square that images are decoded to before they are cropped; 0 is twice the global size.
    """

    global_crops_size: int = option(224, least=1)
    local_crops_size: int = option(98, least=1)
    local_crops_number: int = option(8, least=0)
    global_crops_scale: tuple[float, float] = option((0.32, 1.0), least=0, most=1)
    local_crops_scale: tuple[float, float] = option((0.05, 0.32), least=0, most=1)
    blur: Literal["nominal", "released", "off"] = "nominal"
    mask_sample_probability: float = 0.5
    mask_ratio_min_max: tuple[float, float] = option((0.1, 0.5), least=0, most=1)
    decode_size: int = option(0, least=0)

    @property
    def decoded_side(self) -> int:
        """Side in pixels of a decoded image."""
        return self.decode_size or 2 * self.global_crops_size


@dataclass(frozen=True)
class MonitorConfig(Options):
    """How a run watches itself.

    Args:
        images: training images whose embeddings are compared with those of the start; 0 switches the watch off.
        every_steps: between two looks; None for 20 over the run.
        eval_images: at most this many labelled images for the neighbours and as many for the queries.
        collapse_ratio: a look below this share of the best look so far is a bad one; two bad looks in a row stop the run.
    """

    images: int = option(512, least=0)
    every_steps: int | None = option(None, least=1)
    eval_images: int = option(5000, least=1)
    collapse_ratio: float = 0.5


@dataclass(frozen=True)
class FinetuneConfig(Options):
    """A training run, complete: the same config and images give the same weights on the same kind of CPU, and to rounding on a GPU.

    Args:
        sources: folders, images, globs, `.tar` or `.zip` archives, or lists.
        output: folder of the run.
        model: backbone from the table.
        weights: checkpoint to start from; None for the released one of `model`.
        keep_heads: where `weights` is the folder of a run, start from its student, average and heads as its last checkpoint has them,
            as for a last phase with larger crops; off, heads start from random weights.
        from_scratch: start from random weights.
        offline: never download.
        preset: where the values came from; only recorded.
        epochs: passes over the images, where `steps` is None.
        steps: optimizer steps.
        batch: images of one forward pass on one process.
        accumulation: forward passes of one optimizer step.
        seed: of everything random.
        drop_path_rate: probability that a residual branch of the student skips an image.
        layerscale: start value of LayerScale; only from scratch.
        head_warmup_steps: steps at the start in which only the heads learn; None for a tenth of the run where heads are new and the
            backbone is not.
        distill: a frozen teacher, a model of the table or a checkpoint; None for the student's moving average.
        eval: labelled images (`CLASS/*.jpg`, optionally under `train/` and `test/`) for the watch; None for none.
        device: `auto`, `cpu`, `cuda`.
        dtype: of the networks' products; losses and weights are float32. `auto` is bfloat16 where the hardware multiplies it fast.
        compile: `on` compiles each block, which takes minutes at the start; `auto` does not.
        checkpoint_blocks: recompute activations in the backward pass, to save memory.
        parallel: over several processes, `ddp` copies the networks, `fsdp` shares them out.
        workers: decoder processes; `auto`, or 0, is one for each free CPU.
        checkpoint_steps: between two checkpoints; None for 20 over the run, at most 1000.
        log_steps: between two lines of `metrics.jsonl`.
    """

    sources: tuple[str, ...] = ()
    output: str = ""
    model: str = "vits14"
    weights: str | None = None
    keep_heads: bool = False
    from_scratch: bool = False
    offline: bool = False
    preset: str = "small"
    epochs: float = option(100.0, above=0)
    steps: int | None = option(None, least=1)
    batch: int = option(64, least=1)
    accumulation: int = option(1, least=1)
    seed: int = option(0, least=0)
    drop_path_rate: float = 0.0
    layerscale: float = 1e-5
    head_warmup_steps: int | None = option(None, least=0)
    distill: str | None = None
    eval: str | None = None
    device: str = "auto"
    dtype: Dtype = "auto"
    compile: Compile = "auto"
    checkpoint_blocks: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    workers: int = option(0, least=1, auto=0)
    checkpoint_steps: int | None = option(None, least=1)
    log_steps: int = option(10, least=1)
    crops: CropConfig = field(default_factory=CropConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
