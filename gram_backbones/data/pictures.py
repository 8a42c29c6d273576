"""Pictures that cannot be read, or are not what their annotations say."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps


class PictureError(OSError):
    """A picture that cannot be read; the message is one line and names its path."""

    def __init__(self, message: str):
        # From a loader's process, torch passes on a traceback; its last line is the message.
        line = (message.strip().splitlines() or [""])[-1]
        super().__init__(line.removeprefix(f"{__name__}.{type(self).__name__}: "))


@contextmanager
def naming_picture(path: str | os.PathLike) -> Iterator[None]:
    """Name the picture in whatever error is raised while it is read and prepared.

    Raises:
        PictureError: the block raised an error; the message begins with the path.

    Examples:
        >>> with naming_picture("street.jpg"):
        ...     raise ValueError("image file is truncated")
        Traceback (most recent call last):
        gram_backbones.data.pictures.PictureError: cannot read picture street.jpg: ValueError...
    """
    try:
        yield
    except PictureError:
        raise
    except Exception as error:  # decoders raise whatever they stumble over
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise PictureError(f"cannot read picture {os.fspath(path)}: {reason}") from error


def read_picture(path: str | os.PathLike) -> np.ndarray:
    """A picture as it is shown, that is turned as its EXIF data say.

    Returns:
        RGB, ``(H, W, 3)``, 8 bits.

    Raises:
        PictureError: it cannot be read, or is grey with more than 8 bits, which Pillow would clip.

    Examples:
        >>> read_picture("gone.jpg")
        Traceback (most recent call last):
        gram_backbones.data.pictures.PictureError: cannot read picture gone.jpg: FileNotFound...
    """
    with naming_picture(path), Image.open(path) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"it has more than 8 bits a pixel (Pillow's mode {image.mode})")
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def picture_problems(path: str, size: tuple[int, int]) -> Iterator[tuple[str, str]]:
    """What is wrong with a picture: kinds of :mod:`gram_backbones.data.checking` and reasons.

    Args:
        path: of the picture, which is decoded.
        size: width and height in pixels, as annotated.

    Examples:
        >>> list(picture_problems("gone.jpg", (640, 480)))
        [('missing picture', 'gone.jpg')]
    """
    if not os.path.isfile(path):
        yield "missing picture", path
        return
    try:
        with Image.open(path) as image:
            deep = _is_deep(image)
            mode = image.mode
            image.load()
            orientation = image.getexif().get(0x0112, 1)
            stored, shown = image.size, _size_shown(image)
    except Exception as error:  # decoders raise whatever they stumble over
        kind = "truncated picture" if "truncated" in str(error).lower() else "corrupt picture"
        yield kind, f"{path}: {error}"
        return
    if deep:
        yield "16-bit picture", f"{path}: mode {mode}"
    if orientation != 1:
        what = f"{path}: orientation {orientation}"
        if stored != shown and size == stored:
            shape = f"{shown[0]}×{shown[1]} as shown, {stored[0]}×{stored[1]} as annotated"
            yield "annotated before rotation", f"{what}, {shape}"
            return
        yield "rotated by EXIF", what
    if shown != size:
        yield "other size", f"{path}: {shown[0]}×{shown[1]}, annotated {size[0]}×{size[1]}"


def _is_deep(image: Image.Image) -> bool:
    """Whether a channel has more than 8 bits; must be asked before the image is loaded."""
    if image.mode.startswith(("I", "F")):
        return True
    # Pillow reads 16-bit colours as 8-bit ones; only the decoder's arguments tell.
    tiles = getattr(image, "tile", [])
    return image.format in ("PNG", "TIFF", "PPM") and any(";16" in str(tile[3]) for tile in tiles)


def _size_shown(image: Image.Image) -> tuple[int, int]:
    swapped = image.getexif().get(0x0112, 1) >= 5
    return (image.height, image.width) if swapped else image.size
