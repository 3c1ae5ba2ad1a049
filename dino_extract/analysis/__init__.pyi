# What the command line needs besides the public names. `__init__.py` imports each on first use.

from .cluster import agreements as agreements
from .probes.scores import table_text as table_text
from .probes.scores import write_answers as write_answers
from .tables import write_table as write_table
