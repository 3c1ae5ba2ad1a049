"""A fixture that all tests of pictures use."""

from tests.analysis.conftest import one_thread

__all__ = ["one_thread"]
