"""Images, videos and cameras to predict on: found by paths and globs, read frame by frame.

OpenCV, which both frameworks bring along, is imported when a video or a camera is opened.
"""

from __future__ import annotations

import glob
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from ..data import PictureError, read_picture

IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
_RATE = 25.0  # frames per second, where a video or a camera does not tell


@dataclass(frozen=True)
class Source:
    """An image, a video or a camera.

    Attributes:
        path: of the file, or the camera's index.
        kind: ``"image"``, ``"video"`` or ``"camera"``.

    Examples:
        >>> Source("photographs/street.jpg", "image").drawn, Source("0", "camera").drawn
        ('street.png', 'camera0.mp4')
    """

    path: str
    kind: str

    @property
    def drawn(self) -> str:
        """Name of the picture or video with the predictions."""
        stem = f"camera{self.path}" if self.kind == "camera" else Path(self.path).stem
        return stem + (".png" if self.kind == "image" else ".mp4")


@dataclass
class Frame:
    """An image, or a frame of a video or camera.

    Attributes:
        source: where it is from.
        image: RGB, ``(H, W, 3)``, 8 bits.
        number: of the frame, from 0; None for an image. A camera's count by the clock: those that
            passed while others were computed are left out.
        rate: frames per second; None for an image.
    """

    source: Source
    image: np.ndarray
    number: int | None = None
    rate: float | None = None

    @property
    def name(self) -> str:
        """The path, with the frame's number if there is one: ``clip.mp4#12``."""
        return self.source.path if self.number is None else f"{self.source.path}#{self.number}"


def find_sources(inputs: Iterable[str]) -> list[Source]:
    """The images, videos and cameras that inputs name, each once.

    Args:
        inputs: files; folders, of which the images and videos directly inside are taken; globs,
            also with ``**``; indices of cameras.

    Raises:
        FileNotFoundError: an input names nothing.
        ValueError: two files have the same name up to the suffix, and so would their pictures.

    Examples:
        >>> find_sources(["0"])
        [Source(path='0', kind='camera')]
        >>> find_sources(["gone/*.jpg"])
        Traceback (most recent call last):
        FileNotFoundError: no image or video matches 'gone/*.jpg'
    """
    sources = [*dict.fromkeys(source for text in inputs for source in _named(text))]
    taken: dict[str, Source] = {}
    for source in sources:
        other = taken.setdefault(source.drawn, source)
        if other is not source:
            raise ValueError(
                f"{other.path} and {source.path} would both be drawn as {source.drawn}; predict "
                "them one after the other, each with its own --output"
            )
    return sources


def _named(text: str) -> list[Source]:
    path = Path(text)
    if path.is_dir():
        found = _known(path.iterdir())
        if not found:
            allowed = " ".join(IMAGES + VIDEOS)
            raise FileNotFoundError(f"folder {text!r} has no images or videos ({allowed})")
        return found
    if path.exists():
        return [_of_file(path)]
    if text.isdecimal():
        return [Source(text, "camera")]
    if not glob.has_magic(text):
        raise FileNotFoundError(f"there is no image, video or folder {text!r}")
    found = _known(map(Path, glob.glob(text, recursive=True)))
    if not found:
        raise FileNotFoundError(f"no image or video matches {text!r}")
    return found


def _known(paths: Iterable[Path]) -> list[Source]:
    """The files whose suffix is that of an image or a video, sorted."""
    allowed = IMAGES + VIDEOS
    return [_of_file(p) for p in sorted(paths) if p.suffix.lower() in allowed and p.is_file()]


def _of_file(path: Path) -> Source:
    return Source(str(path), "video" if path.suffix.lower() in VIDEOS else "image")


def read_frames(source: Source) -> Iterator[Frame]:
    """Read an image, or a video frame by frame; a camera's end with Ctrl-C.

    Raises:
        PictureError: it cannot be read; the message names it.
    """
    if source.kind == "image":
        yield Frame(source, read_picture(source.path))
        return
    number, camera = 0, source.kind == "camera"
    with _opened(source) as video, _interrupted(camera) as stopped:
        import cv2

        rate = video.get(cv2.CAP_PROP_FPS) or _RATE
        start = time.monotonic()
        while not stopped.is_set():
            read, pixels = video.read()  # BGR
            if not read:
                break
            if camera:
                number = max(number, round((time.monotonic() - start) * rate))
            yield Frame(source, np.ascontiguousarray(pixels[:, :, ::-1]), number, rate)
            number += 1
    if not number:
        raise PictureError(f"cannot read {source.kind} {source.path}: it has no frames")


def read_batches(
    sources: Iterable[Source], size: int, skip: Callable[[Source, PictureError], None]
) -> Iterator[list[Frame]]:
    """Read in lists of at most ``size`` frames; no more are in memory.

    Args:
        sources: to read, in this order.
        size: maximum number of frames in a list.
        skip: called with each source that cannot be read.
    """
    batch: list[Frame] = []
    for source in sources:
        try:
            for frame in read_frames(source):
                batch.append(frame)
                if len(batch) == size:
                    yield batch
                    batch = []
        except PictureError as error:
            skip(source, error)
    if batch:
        yield batch


def count_frames(sources: Iterable[Source]) -> int | None:
    """The number of frames, for videos as they state it; None with a camera."""
    total = 0
    for source in sources:
        if source.kind == "camera":
            return None
        total += 1 if source.kind == "image" else _stated_frames(source)
    return total


def require_cameras(sources: Iterable[Source]) -> None:
    """Open and close each camera.

    Raises:
        PictureError: there is no such camera.
    """
    for source in sources:
        if source.kind == "camera":
            with _opened(source):
                pass


def _stated_frames(video: Source) -> int:
    import cv2

    try:
        with _opened(video) as capture:
            return max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    except PictureError:  # said when it is read
        return 1


@contextmanager
def _opened(source: Source) -> Iterator[Any]:
    """OpenCV's reader of a video or a camera."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # quiet: our sentence says what is wrong
    import cv2

    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    video = cv2.VideoCapture(int(source.path) if source.kind == "camera" else source.path)
    cv2.utils.logging.setLogLevel(level)
    try:
        if not video.isOpened():
            if source.kind == "camera":
                raise PictureError(f"there is no camera {source.path}, or another program uses it")
            raise PictureError(f"cannot read video {source.path}: OpenCV cannot decode it")
        yield video
    finally:
        video.release()


@contextmanager
def _interrupted(catch: bool) -> Iterator[Event]:
    """An event that the first Ctrl-C sets; the second interrupts as ever."""
    stopped = Event()
    if not catch:
        yield stopped
        return
    previous = signal.getsignal(signal.SIGINT)

    def stop(*_: object) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, previous)
