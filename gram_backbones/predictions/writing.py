"""Files of predictions: pictures, videos, JSON, COCO's results and CSV, whole or not at all."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from ..atomic import replacing
from ..pictures import Instances
from .sources import Frame, Source

# Adds the instances that were found in a frame to a file.
Add = Callable[[Frame, Instances], None]


class DrawnFiles:
    """Writes drawn frames: an image as PNG, the frames of a video or camera as one MPEG-4 video.

    Use it as a context manager; a video is finished when another source's frame comes, and at the
    end. After an error or an interruption, a video that was not finished is not there::

        with DrawnFiles(Path("predictions")) as files:
            files.write(frame, picture)
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._source: Source | None = None
        self._video: Any = None
        self._shown: tuple[int, np.ndarray] | None = None  # number and pixels of the last frame
        self._open = ExitStack()

    def __enter__(self) -> DrawnFiles:
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def write(self, frame: Frame, picture: np.ndarray) -> None:
        """Write a frame as it was drawn, RGB ``(H, W, 3)``; a video's are all of one size.

        Where numbers of frames are left out, the last frame is shown until the next, so that a
        video is as long as what it shows took.

        Raises:
            OSError: the file cannot be written.
        """
        path = self._folder / frame.source.drawn
        if frame.rate is None:
            with replacing(path) as part:
                Image.fromarray(picture).save(part)
            return
        if frame.source is not self._source:
            self._open.close()
            self._source = frame.source
            self._video = self._open.enter_context(_new_video(path, picture, frame.rate))
            self._shown = None
        number, pixels = frame.number or 0, np.ascontiguousarray(picture[:, :, ::-1])
        if self._shown:
            last, before = self._shown
            for _ in range(last + 1, number):
                self._video.write(before)
        self._video.write(pixels)
        self._shown = number, pixels


@contextmanager
def _new_video(path: Path, picture: np.ndarray, rate: float) -> Iterator[Any]:
    import cv2

    with replacing(path) as part:
        code = cv2.VideoWriter.fourcc(*"mp4v")
        video = cv2.VideoWriter(str(part), code, rate, picture.shape[1::-1])
        try:
            if not video.isOpened():
                raise OSError(f"OpenCV cannot write the video {path}")
            yield video
        finally:
            video.release()


@contextmanager
def predictions_file(
    folder: Path, form: str, names: Sequence[str], sources: Sequence[Source]
) -> Iterator[Add]:
    """A function that adds a frame's instances to a file, which is there when the block has ended.

    Args:
        folder: of the file, whose name is in `FILES`.
        form: ``"json"``: for every frame its boxes (x1, y1, x2, y2), scores and classes.
            ``"coco"``: COCO's results with masks, and file and class names next to the ids.
            ``"csv"``: a row for every instance.
        names: of the classes.
        sources: all that will be predicted on. If they are images whose names are numbers, as
            COCO's are, these are the ``image_id``; otherwise frames are counted from 1.

    Raises:
        OSError: the file cannot be written.

    Examples:
        >>> import tempfile, torch
        >>> street = Source("street.jpg", "image")
        >>> frame = Frame(street, np.zeros((100, 200, 3), np.uint8))
        >>> found = Instances(torch.tensor([[10.0, 20.0, 60.0, 50.0]]), [1], scores=[0.75])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with predictions_file(Path(folder), "csv", ["cat", "dog"], [street]) as add:
        ...         add(frame, found)
        ...     print(Path(folder, "predictions.csv").read_text())
        file,frame,class,name,score,x1,y1,x2,y2
        street.jpg,,1,dog,0.7500,10.00,20.00,60.00,50.00
        <BLANKLINE>
    """
    with replacing(folder / FILES[form]) as part:
        with open(part, "w", encoding="utf-8", newline="") as file:
            with _WRITERS[form](file, names, sources) as add:
                yield add


@contextmanager
def _bracketed(file: IO[str], opening: str, closing: str) -> Iterator[Callable[[str], None]]:
    """Write entries of JSON between brackets, with commas between them."""
    separator = "\n"
    file.write(opening)

    def write(entry: str) -> None:
        nonlocal separator
        file.write(separator + entry)
        separator = ",\n"

    yield write
    file.write(f"\n{closing}\n")


@contextmanager
def _write_json(file: IO[str], names: Sequence[str], sources: Sequence[Source]) -> Iterator[Add]:
    with _bracketed(file, "{", "}") as write:

        def add(frame: Frame, found: Instances) -> None:
            content = {
                "boxes": found.boxes.tolist(),
                "scores": found.scores,
                "classes": found.classes,
                "names": [names[index] for index in found.classes],
            }
            write(f"{json.dumps(frame.name)}: {json.dumps(content)}")

        yield add


@contextmanager
def _write_coco(file: IO[str], names: Sequence[str], sources: Sequence[Source]) -> Iterator[Add]:
    categories = category_ids(names)
    are_ids = all(s.kind == "image" and Path(s.path).stem.isdecimal() for s in sources)
    frames = count(1)
    with _bracketed(file, "[", "]") as write:

        def add(frame: Frame, found: Instances) -> None:
            path, number = Path(frame.source.path), next(frames)
            image: dict[str, Any] = {"image_id": int(path.stem) if are_ids else number}
            image["file_name"] = path.name
            if frame.number is not None:
                image["frame"] = frame.number
            for i, index in enumerate(found.classes):
                category = {"category_id": categories[index], "category_name": names[index]}
                write(json.dumps({**image, **category, **_coco_instance(found, i)}))

        yield add


def _coco_instance(found: Instances, i: int) -> dict[str, Any]:
    x1, y1, x2, y2 = found.boxes[i].tolist()
    row: dict[str, Any] = {"bbox": [x1, y1, x2 - x1, y2 - y1]}
    if found.scores is not None:
        row["score"] = found.scores[i]
    if found.masks is not None:
        from pycocotools import mask as mask_api  # comes with the frameworks, not with the core

        rle = mask_api.encode(np.asfortranarray(found.masks[i].numpy(), np.uint8))
        row["segmentation"] = {**rle, "counts": rle["counts"].decode()}
    return row


@contextmanager
def _write_csv(file: IO[str], names: Sequence[str], sources: Sequence[Source]) -> Iterator[Add]:
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(("file", "frame", "class", "name", "score", "x1", "y1", "x2", "y2"))

    def add(frame: Frame, found: Instances) -> None:
        for index, score, box in zip(found.classes, found.scores or [], found.boxes.tolist()):
            corners = (f"{value:.2f}" for value in box)
            place = frame.source.path, frame.number  # None leaves its column empty
            rows.writerow((*place, index, names[index], f"{score:.4f}", *corners))

    yield add


FILES = {"json": "predictions.json", "coco": "coco_results.json", "csv": "predictions.csv"}
_WRITERS: dict[str, Callable[..., AbstractContextManager[Add]]] = {
    "json": _write_json,
    "coco": _write_coco,
    "csv": _write_csv,
}


def category_ids(names: Sequence[str]) -> list[int]:
    """``category_id`` of every class: COCO's own for its 80 classes, otherwise counted from 1.

    Examples:
        >>> category_ids(["disc", "box"])
        [1, 2]
    """
    known = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]  # by id, with gaps
    ids = {name: index for index, name in enumerate(known) if name not in ("N/A", known[0])}
    if set(names) == set(ids):
        return [ids[name] for name in names]
    return list(range(1, len(names) + 1))
