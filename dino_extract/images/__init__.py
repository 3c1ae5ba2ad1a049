"""From the name of an image to its pixels: finding, listing, reading, decoding and resizing."""
