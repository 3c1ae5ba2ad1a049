"""The table of containers, and from one image to its bytes."""

from __future__ import annotations

from dino_extract.images.containers import MAX_FILE_BYTES, Container, ImageError, ImageRef
from dino_extract.images.tar import Tar
from dino_extract.images.walking import Folder
from dino_extract.images.zip import Zip
from dino_extract.status import Status

CONTAINERS: tuple[Container, ...] = (Folder(), Tar(), Zip())  # the first that serves a path lists it

CONTAINER_OF_KIND = {container.kind: container for container in CONTAINERS}


def container_at(path: bytes, mode: int) -> Container | None:
    """The container that lists a path, or None for a file of its own. Arguments as for `Container.serves`."""
    for container in CONTAINERS:
        if container.serves(path, mode):
            return container
    return None


def read_image_bytes(ref: ImageRef, *, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of one image. Never waits for a FIFO or device, and never reads more than `max_bytes`.

    Raises:
        ImageError: the file was deleted or its archive replaced (VANISHED), it is too large (TOO_LARGE), or unreadable.
    """
    try:
        return CONTAINER_OF_KIND[ref.kind].read(ref, max_bytes)
    except FileNotFoundError:
        raise ImageError(Status.VANISHED, "read: the file has gone") from None
    except OSError as error:
        raise ImageError(Status.UNREADABLE, f"read: {type(error).__name__}: {error.strerror}") from error
