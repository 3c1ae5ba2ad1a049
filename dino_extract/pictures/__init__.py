"""Images and the answers about them, in three groups.

Results drawn with the images they are about: `sheets` (contact sheets, drawn by `strips`), `confusion`, `report` (the page).
Patch tokens drawn: `pca`, `match`, `attention`.
Answers that need images: `queries` (search and classify with image files), `calibration` (thresholds of dedup on altered copies).
The rest serves these: `source_images` (the image behind a row), `model_input` (an image file for a model), `layout`, `captions`.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
