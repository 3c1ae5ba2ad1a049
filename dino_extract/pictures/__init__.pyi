# What the command line needs besides the public names. `__init__.py` imports each on first use.

from .confusion import check_confusion_target as check_confusion_target
from .layout import check_picture_target as check_picture_target
