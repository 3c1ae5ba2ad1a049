"""What all tests of pictures share."""

from tests.analysis.conftest import one_thread

__all__ = ["one_thread"]
