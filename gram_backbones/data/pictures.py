"""Pictures that cannot be read, or are not what their annotations say."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, ImageOps

logger = logging.getLogger(__name__)
_ORIENTATION = 0x0112  # EXIF tag


class PictureError(OSError):
    """A picture that cannot be read; the message is one line and names its path."""

    def __init__(self, message: str):
        # From a loader's process, torch passes on a traceback; its last line is the message.
        line = (message.strip().splitlines() or [""])[-1]
        super().__init__(line.removeprefix(f"{__name__}.{type(self).__name__}: "))


@contextmanager
def naming_picture(
    path: str | os.PathLike, size: tuple[float, float] | None = None
) -> Iterator[None]:
    """Name the picture in whatever error is raised while it is read and prepared.

    Refuses what would be read wrongly without an error: more than 8 bits a channel, which Pillow
    clips, and another size than annotated.

    Args:
        path: of the picture; nothing is refused if it is no local file.
        size: width and height in pixels, as annotated.

    Raises:
        PictureError: the picture is refused, or the block raised an error; the message begins with
            the path.

    Examples:
        >>> with naming_picture("street.jpg"):
        ...     raise ValueError("image file is truncated")
        Traceback (most recent call last):
        gram_backbones.data.pictures.PictureError: cannot read picture street.jpg: ValueError...
    """
    try:
        if os.path.isfile(path):
            _refuse(path, size)
        yield
    except PictureError:
        raise
    except Exception as error:  # decoders raise whatever they stumble over
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise PictureError(f"cannot read picture {os.fspath(path)}: {reason}") from error


def _refuse(path: str | os.PathLike, size: tuple[float, float] | None) -> None:
    try:
        with Image.open(path) as image:
            deep, stored = _is_deep(image), image.size
    except Exception:  # the reader may know more formats, and otherwise says what is wrong
        return
    if deep:
        raise ValueError("it has more than 8 bits a channel; save it with 8")
    # A reader may leave EXIF's rotation out, where the annotations do too.
    if size is not None and size not in (stored, stored[::-1]):
        shapes = [f"{width}×{height}" for width, height in (stored, size)]
        raise ValueError(f"it is {shapes[0]}, but annotated as {shapes[1]}")


def read_picture(path: str | os.PathLike) -> np.ndarray:
    """A picture as it is shown, that is turned as its EXIF data say.

    Returns:
        RGB, ``(H, W, 3)``, 8 bits.

    Raises:
        PictureError: it cannot be read, or has more than 8 bits a channel.

    Examples:
        >>> read_picture("gone.jpg")
        Traceback (most recent call last):
        gram_backbones.data.pictures.PictureError: cannot read picture gone.jpg: FileNotFound...
    """
    with naming_picture(path), Image.open(path) as image:
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


class PictureGuard:
    """Calls what reads pictures: errors name the picture, or the picture is left out.

    Args:
        may_skip: number of pictures that may be left out, by default none.

    Examples:
        >>> guard = PictureGuard()
        >>> guard.read(len, [1, 2], "street.jpg")
        2
        >>> guard.read(len, 7, "street.jpg")
        Traceback (most recent call last):
        gram_backbones.data.pictures.PictureError: cannot read picture street.jpg: TypeError...
    """

    def __init__(self, may_skip: int = 0):
        self.may_skip = may_skip
        self.skipped: set[str] = set()

    def read(
        self,
        reader: Callable[[Any], Any],
        sample: Any,
        path: str,
        size: tuple[float, float] | None = None,
    ) -> Any:
        """What ``reader(sample)`` returns, or None for a picture that is left out.

        Raises:
            PictureError: the picture cannot be read, and no more may be left out.
        """
        try:
            with naming_picture(path, size):
                return reader(sample)
        except PictureError as error:
            known = path in self.skipped
            self.skipped.add(path)
            if len(self.skipped) > self.may_skip:
                raise
            if not known:  # each loader process counts its own
                logger.warning("Left out a picture (%d so far): %s", len(self.skipped), error)
            return None


def picture_problems(
    path: str, size: tuple[int, int], *, decode: bool = True
) -> Iterator[tuple[str, str]]:
    """What is wrong with a picture: kinds of :mod:`gram_backbones.data.checking` and reasons.

    Args:
        path: of the picture.
        size: width and height in pixels, as annotated.
        decode: read all of it; otherwise only its header.

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
            if decode:
                image.load()
            # Pillow decodes a PNG to look for EXIF data behind the pixels.
            has_exif = decode or image.format != "PNG" or "exif" in image.info
            orientation = image.getexif().get(_ORIENTATION) if has_exif else None
            rotated = orientation in range(2, 9)  # others mean nothing
            stored = image.size
    except Exception as error:  # decoders raise whatever they stumble over
        kind = "truncated picture" if "truncated" in str(error).lower() else "corrupt picture"
        yield kind, f"{path}: {error}"
        return
    shown = stored[::-1] if orientation in range(5, 9) else stored
    if deep:
        yield "16-bit picture", f"{path}: mode {mode}"
    if rotated:
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
