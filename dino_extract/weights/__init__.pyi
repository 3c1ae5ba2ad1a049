# The names of this package, stated once: type checkers read them here, and `__init__.py` imports each on first use.

from .check import WeightsCheck as WeightsCheck
from .check import verify_weights as verify_weights
from .checkpoint import BackboneCheckpoint as BackboneCheckpoint
from .checkpoint import architecture_name as architecture_name
from .checkpoint import backbone_config as backbone_config
from .checkpoint import read_checkpoint as read_checkpoint
from .checkpoint import save_checkpoint as save_checkpoint
from .export import convert as convert
from .loading import LoadedBackbone as LoadedBackbone
from .loading import build as build
from .loading import load as load
from .loading import load_backbone as load_backbone
from .locate import cache_dir as cache_dir
from .onnx_file import write_onnx as write_onnx
from .registry import DEFAULT_MODEL as DEFAULT_MODEL
from .registry import Checkpoint as Checkpoint
from .registry import checkpoints as checkpoints
from .registry import find_checkpoint as find_checkpoint
from .registry import is_timm as is_timm
from .registry import weights_folder as weights_folder
from .resolve import WeightsFile as WeightsFile
from .resolve import ensure_available as ensure_available
from .resolve import resolve_weights as resolve_weights
from .timm_backbone import TimmBackbone as TimmBackbone
from .untrained import RANDOM_WEIGHTS_WARNING as RANDOM_WEIGHTS_WARNING
from .untrained import untrained_backbone as untrained_backbone
