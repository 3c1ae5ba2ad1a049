#!/bin/sh
# How `tiny.safetensors` was trained: `weights/train_tiny.sh PHOTOS SAMPLE WORK` writes WORK/tiny.safetensors. Eleven hours on a CPU core or two.
# PHOTOS is a folder, a quoted glob of .tar shards, or a list, and SAMPLE some thousand of them, to whiten with; see docs/training.md for the
# photographs and the figures. The file that comes with the project had its first phase stopped after step 2311. Run it in the
# environment of dino-extract.
set -eu
photos=$1 sample=$2 work=$3

common="--model tiny --local-crops 0 --blur off --batch 64 --dtype bfloat16
    --set crops.mask_sample_probability=0 --set objective.ibot_loss_weight=0 --set objective.koleo_loss_weight=0.02
    --set objective.dino_head.n_prototypes=2048 --set objective.dino_head.hidden_dim=512 --set objective.dino_head.bottleneck_dim=64
    --set objective.student_temp=0.05 --set schedule.warmup_teacher_temp=0.015 --set schedule.teacher_temp=0.015
    --set schedule.freeze_last_layer_steps=0 --set schedule.weight_decay_end=0.04
    --set optim.patch_embed_lr_mult=1 --set optim.layerwise_decay=1"

# $photos and $common are lists of words.
# shellcheck disable=SC2086
dino-extract finetune $photos -o "$work/first" $common --from-scratch --global-size 56 --steps 3000 --seed 0 --set layerscale=1 \
    --set optim.base_lr=0.0016 --set schedule.warmup_steps=100 --set schedule.min_lr=1.5e-4 \
    --set schedule.momentum_teacher=0.9 --set schedule.final_momentum_teacher=0.996
# shellcheck disable=SC2086
dino-extract finetune $photos -o "$work/second" $common --weights "$work/first" --keep-heads --global-size 84 --steps 600 --seed 1 \
    --set crops.decode_size=112 --set drop_path_rate=0 --set objective.anchor_loss_weight=0 \
    --set optim.base_lr=0.001 --set schedule.warmup_steps=20 --set schedule.min_lr=1e-6 \
    --set schedule.momentum_teacher=0.99 --set schedule.final_momentum_teacher=0.998
# The other phases learn hidden patches too; the later of two equal options counts.
hidden="$common --keep-heads --global-size 84
    --set crops.mask_sample_probability=0.5 --set objective.ibot_loss_weight=0.5
    --set crops.decode_size=112 --set drop_path_rate=0 --set objective.anchor_loss_weight=0
    --set optim.base_lr=0.0016 --set schedule.warmup_steps=50 --set schedule.min_lr=1e-6 --set schedule.momentum_teacher=0.99"
# shellcheck disable=SC2086
dino-extract finetune $photos -o "$work/third" $hidden --weights "$work/second" --steps 1900 --seed 2 --set schedule.final_momentum_teacher=0.999
# shellcheck disable=SC2086
dino-extract finetune $photos -o "$work/fourth" $hidden --weights "$work/third" --steps 1700 --seed 3 --set schedule.final_momentum_teacher=0.9995 \
    --set objective.koleo_loss_weight=0.05
last=fourth
for phase in "fifth 2850 4" "sixth 2600 5" "seventh 2850 6" "eighth 2600 7"; do
    # shellcheck disable=SC2086
    set -- $phase # name, steps and seed
    # shellcheck disable=SC2086
    dino-extract finetune $photos -o "$work/$1" $hidden --weights "$work/$last" --steps "$2" --seed "$3" \
        --set schedule.final_momentum_teacher=0.999 --set 'crops.global_crops_scale=[0.14,1.0]'
    last=$1
done

# shellcheck disable=SC2086
dino-extract embed $sample -o "$work/tokens.h5" --weights "$work/$last" --size 224 --tokens cls,patch --overwrite
python "$(dirname "$0")/whiten.py" "$work/$last" "$work/tokens.h5" "$work/white.safetensors"
dino-extract weights convert "$work/white.safetensors" "$work/tiny.safetensors" --to dino-extract --dtype float16 --licence Apache-2.0 --size 280 --overwrite
