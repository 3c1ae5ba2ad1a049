"""The inference engine: a backbone made fast and proven equal to backbone.py."""

from dino_extract.engine.cuda import allocator_for
from dino_extract.engine.jpeg import require_decoder
from dino_extract.engine.plan import (
    ComputeDtype,
    choose_batch_size,
    choose_compiled,
    choose_device,
    choose_devices,
    choose_dtype,
    forbid_tf32,
    forward_flops,
)
from dino_extract.engine.resize import to_device
from dino_extract.engine.run import Engine, Ticket

__all__ = [
    "ComputeDtype",
    "Engine",
    "Ticket",
    "allocator_for",
    "choose_batch_size",
    "choose_compiled",
    "choose_device",
    "choose_devices",
    "choose_dtype",
    "forbid_tf32",
    "forward_flops",
    "require_decoder",
    "to_device",
]
