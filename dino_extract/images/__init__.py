"""From the name of an image to its pixels.

Read the modules in this order:
  1. `containers`: the protocol that folders and archives share, and `ImageRef`, which names one image.
  2. `walking`, `tar`, `zip` (with `members`): the three kinds of container. `suffixes`: which files may be images.
  3. `reading`: the table of containers, and from an `ImageRef` to bytes.
  4. `sources`: the check of the user's arguments. `finding` (with `columns`): from them to a `manifest`, the sorted list of images.
  5. `decode`, `preprocess`, `pixels`: from bytes to the pixels that a model sees.
  6. `decoder`: a child process that does 3 and 5. `loader`: many of them, and batches in order.
"""
