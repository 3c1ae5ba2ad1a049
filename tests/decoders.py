"""Programs for decoder processes that die."""

from __future__ import annotations


def child_that_dies(ending: str, *, when: str) -> str:
    """A program for `parent.CHILD_PROGRAM` that runs `ending` instead of answering requests for which `when` holds, about `ref.key`."""
    return (
        "import os, sys; sys.path[:] = sys.argv[2:]; from dino_extract.images.decoder.child import answer, main\n"
        f"main(sys.argv[1], lambda ref, options, **choices: {ending} if {when} else answer(ref, options, **choices))"
    )
