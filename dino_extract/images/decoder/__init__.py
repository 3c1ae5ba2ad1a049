"""One decoder process: a child that reads, decodes and resizes images, so that a crash costs one image and not the run.

`wire` is the format of requests and replies, `parent` starts the child and talks to it, `child` is the program that answers.
"""
