"""Models and their weights: the table, finding and downloading, every checkpoint layout in and out, loading.

The names of this package are stated in `__init__.pyi`. Each is imported when it is first used: the table and the search for a file
need no torch.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
