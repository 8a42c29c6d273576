"""The demo's data set: deterministic synthetic images in COCO's instance format.

There are four classes of shapes in any rotation, with textures, on textured backgrounds. Their
sizes vary by a factor of four, and they overlap. As in COCO, masks cover only the visible part.
Polygons have no holes, so a hole left by a smaller shape on top is filled.
Some images have a crowd region: many small shapes of one class, annotated as one RLE mask with
``iscrowd`` 1.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as mask_api

logger = logging.getLogger(__name__)

CLASSES = ("disc", "box", "triangle", "star")
SIZE = 160  # pixels, width and height of an image
MIN_RADIUS, MAX_RADIUS = 11, 42  # pixels
MIN_VISIBLE = 0.35  # share of a shape that must not be hidden by later ones
CROWD_SHARE = 0.1  # share of images with a crowd region
_SPLIT_KEYS = {"train": 0, "val": 1}


@dataclass
class _Instance:
    label: int
    area: int  # pixels of the whole shape
    visible: np.ndarray  # bool (SIZE, SIZE)
    crowd: bool = False


def make_demo_dataset(
    root: str | Path, *, train: int = 480, val: int = 80, seed: int = 0
) -> dict[str, Path]:
    """Write ``{train,val}/*.png`` and ``{train,val}.json`` below ``root``.

    The same arguments give the same images and annotations. Image i of a split does not depend on
    the number of images.

    Returns:
        Annotation file of each split.
    """
    root = Path(root)
    files = {}
    for split, count in (("train", train), ("val", val)):
        folder = root / split
        folder.mkdir(parents=True, exist_ok=True)
        images: list[dict] = []
        annotations: list[dict] = []
        for index in range(count):
            rng = np.random.default_rng([seed, _SPLIT_KEYS[split], index])
            image, instances = render_image(rng)
            name = f"{index:06d}.png"
            cv2.imwrite(str(folder / name), image[:, :, ::-1])
            images.append({"id": index + 1, "file_name": name, "width": SIZE, "height": SIZE})
            for instance in instances:
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": index + 1, **_annotation(instance)}
                )
            if (index + 1) % 80 == 0:
                logger.info("%s: drew %d of %d images", folder, index + 1, count)
        files[split] = root / f"{split}.json"
        categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
        record = {"images": images, "annotations": annotations, "categories": categories}
        files[split].write_text(json.dumps(record))
    return files


def render_image(rng: np.random.Generator) -> tuple[np.ndarray, list[_Instance]]:
    """One RGB image ``(SIZE, SIZE, 3)`` of uint8 and its instances, back to front."""
    image = _texture(rng, contrast=0.35)
    instances: list[_Instance] = []
    if rng.random() < CROWD_SHARE:
        _draw_crowd(rng, image, instances)
    wanted = int(rng.integers(2, 7))
    for _ in range(wanted * 4):  # tries: a shape that would hide another one is drawn elsewhere
        if sum(not instance.crowd for instance in instances) == wanted:
            break
        radius = float(np.exp(rng.uniform(np.log(MIN_RADIUS), np.log(MAX_RADIUS))))
        center = rng.uniform(radius * 0.6, SIZE - radius * 0.6, 2)
        label = int(rng.integers(len(CLASSES)))
        mask = _shape_mask(label, center, radius, rng.uniform(0, 2 * np.pi))
        if all((i.visible & ~mask).sum() >= MIN_VISIBLE * i.area for i in instances):
            for instance in instances:
                instance.visible &= ~mask
            instances.append(_Instance(label, int(mask.sum()), mask))
            _paint(rng, image, mask)
    noise = rng.normal(0, rng.uniform(2, 8), image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), instances


def _draw_crowd(rng: np.random.Generator, image: np.ndarray, instances: list[_Instance]) -> None:
    label = int(rng.integers(len(CLASSES)))
    middle = rng.uniform(45, SIZE - 45, 2)
    swarm = np.zeros((SIZE, SIZE), bool)
    for _ in range(int(rng.integers(12, 20))):
        center = middle + rng.normal(0, 16, 2)
        mask = _shape_mask(label, center, rng.uniform(5, 8), rng.uniform(0, 2 * np.pi))
        _paint(rng, image, mask)
        swarm |= mask
    instances.append(_Instance(label, int(swarm.sum()), swarm, crowd=True))


def _shape_mask(label: int, center: np.ndarray, radius: float, angle: float) -> np.ndarray:
    corners = {"disc": 40, "box": 4, "triangle": 3, "star": 10}[CLASSES[label]]
    turns = angle + np.arange(corners) * 2 * np.pi / corners
    radii = np.full(corners, radius)
    if CLASSES[label] == "star":
        radii[1::2] *= 0.42
    points = center + radii[:, None] * np.stack([np.cos(turns), np.sin(turns)], 1)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    cv2.fillPoly(mask, [np.round(points).astype(np.int32)], 1)
    return mask.astype(bool)


def _paint(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray) -> None:
    """Fill a mask with a texture, a dark rim inside its border."""
    image[mask] = _texture(rng, contrast=1.0)[mask]
    inner = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    image[mask & ~inner] *= 0.45


def _texture(rng: np.random.Generator, contrast: float) -> np.ndarray:
    """A float image of two colours in a random pattern."""
    base = rng.uniform(40, 215, 3)
    other = np.clip(base + contrast * rng.uniform(-110, 110, 3), 0, 255)
    patterns: tuple[Callable, ...] = (_flat, _stripes, _checks, _dots, _clouds)
    weight = patterns[rng.integers(len(patterns))](rng)[:, :, None]
    return base * (1 - weight) + other * weight


def _grid(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rotated pixel coordinates in periods of 6 to 18 pixels."""
    y, x = np.mgrid[:SIZE, :SIZE] / rng.uniform(6, 18)
    angle = rng.uniform(0, np.pi)
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _flat(rng: np.random.Generator) -> np.ndarray:
    return np.zeros((SIZE, SIZE))


def _stripes(rng: np.random.Generator) -> np.ndarray:
    return (_grid(rng)[0] % 1 < 0.5).astype(float)


def _checks(rng: np.random.Generator) -> np.ndarray:
    u, v = _grid(rng)
    return ((u % 1 < 0.5) ^ (v % 1 < 0.5)).astype(float)


def _dots(rng: np.random.Generator) -> np.ndarray:
    u, v = _grid(rng)
    return (np.hypot(u % 1 - 0.5, v % 1 - 0.5) < 0.3).astype(float)


def _clouds(rng: np.random.Generator) -> np.ndarray:
    coarse = rng.random((6, 6)).astype(np.float32)
    return np.clip(cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC), 0, 1)


def _annotation(instance: _Instance) -> dict:
    rle = mask_api.encode(np.asfortranarray(instance.visible.astype(np.uint8)))
    common = {
        "category_id": instance.label + 1,
        "iscrowd": int(instance.crowd),
        "area": float(mask_api.area(rle)),
        "bbox": mask_api.toBbox(rle).tolist(),
    }
    if instance.crowd:
        return {**common, "segmentation": {**rle, "counts": rle["counts"].decode()}}
    contours, _ = cv2.findContours(
        instance.visible.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    # COCO's polygons: at least three points; slivers of one or two pixels have none.
    polygons = [c.reshape(-1).astype(float).tolist() for c in contours if len(c) >= 3]
    return {**common, "segmentation": polygons}
