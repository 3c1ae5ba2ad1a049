"""Embeddings in the file formats of other tools. Failed images are left out, and no file is read into memory as a whole.

A format is one row of the table in `formats`, which the command line reads too, and one module with `write(job)`, which `exporting`
calls. `job` has the parts that the formats share.
"""
