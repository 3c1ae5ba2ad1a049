# The public names, stated once: editors and type checkers read them here, and `__init__.py` imports each on first use.

from .analysis.cluster import cluster as cluster
from .analysis.curate import curate as curate
from .analysis.dataset import EmbeddingDataset as EmbeddingDataset
from .analysis.dedup import dedup as dedup
from .analysis.dedup import leaks as leaks
from .analysis.export.exporting import export as export
from .analysis.outliers import outliers as outliers
from .analysis.probes.knn import knn as knn
from .analysis.probes.linear import linear as linear
from .analysis.probes.linear_dense import linear_dense as linear_dense
from .analysis.search import retrieval_score as retrieval_score
from .embedding.benchmark import benchmark as benchmark
from .embedding.doctor import doctor as doctor
from .embedding.encoder import Encoder as Encoder
from .embedding.pipeline import embed as embed
from .embedding.pipeline import embed_like as embed_like
from .embedding.pipeline import plan as plan
from .embedding.transformer import EmbeddingTransformer as EmbeddingTransformer
from .embedding.verification import verify as verify
from .errors import DinoExtractError as DinoExtractError
from .finetuning.api import finetune as finetune
from .pictures.attention import attention as attention
from .pictures.attention import attention_maps as attention_maps
from .pictures.calibration import calibrate as calibrate
from .pictures.confusion import draw_confusion as draw_confusion
from .pictures.match import match as match
from .pictures.match import match_patches as match_patches
from .pictures.pca import pca as pca
from .pictures.queries import classify as classify
from .pictures.queries import search as search
from .pictures.report import report as report
from .pictures.sheets import sheet as sheet
from .store import info as info
from .store import join as join
from .store import open as open
from .weights import load_backbone as load_backbone

__version__: str
