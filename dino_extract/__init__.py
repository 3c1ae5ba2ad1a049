"""dino-extract: DINOv2 embeddings of image folders in crash-safe HDF5, and fine-tuning on your own images.

The public names are stated in `__init__.pyi`. Each is imported when it is first used, so that `import dino_extract` and
`dino-extract --help` load neither torch nor h5py.
"""

from __future__ import annotations

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
