"""Draw a trained detector's predictions on images. The config's kind says by which framework.

  {prog} mask_rcnn_aognet40m_fpn_1x output/model_final.pth photographs/*.jpg
  {prog} mask-rcnn_aognet-40m_fpn_1x_coco epoch_12.pth photographs --output drawn

CONFIG is a file, .yaml or .py, or the name of a shipped config, as gram-backbones configs --names
prints them. Every image gets a picture, NAME.png in the output folder, and all predictions go to
predictions.json there: for every image the boxes in pixels (x1, y1, x2, y2), their scores, and
their classes, by index and by name where the config's data set has names.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..config_folders import find_config
from . import setup

_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# From an image's path, the picture's path and the lowest score to draw, to the predictions.
Predict = Callable[[Path, Path, float], dict[str, Any]]


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = setup.parser_with_examples(__doc__, prog)
    parser.add_argument("config", metavar="CONFIG", help="a file, or the name of a shipped config")
    parser.add_argument("weights", metavar="WEIGHTS", help="file of the trained detector")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, or folders of images")
    parser.add_argument("--output", default="predictions", help="folder (default: predictions)")
    parser.add_argument(
        "--score", type=float, default=0.5, help="lowest score of what is drawn (default: 0.5)"
    )
    parser.add_argument("--deploy", action="store_true", help="with norms folded in: faster")
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Predict, draw and write."""
    parser = make_parser(prog)
    args = parser.parse_args(argv)
    try:
        images = list_images(args.images)
        config = find_config(args.config)
        setup.start()
        load = _load_mmdet if setup.is_mmdet(args.config, parser.prog) else _load_d2
        predict = load(str(config), args.weights, args.deploy)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"{parser.prog}: {error}")
    from ..data import PictureError

    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    found, unread = {}, []
    for number, image in enumerate(images, 1):
        try:
            found[str(image)] = predict(image, output / f"{image.stem}.png", args.score)
        except PictureError as error:
            unread.append(image)
            print(f"{number}/{len(images)} {error}", file=sys.stderr)
            continue
        drawn = sum(score >= args.score for score in found[str(image)]["scores"])
        print(f"{number}/{len(images)} {image}: {drawn} at a score of {args.score:g} or more")
    (output / "predictions.json").write_text(json.dumps(found, indent=1))
    print(f"Pictures and predictions.json are in {output}")
    if unread:
        sys.exit(f"{parser.prog}: {len(unread)} of {len(images)} images cannot be read")


def list_images(paths: Iterable[str]) -> list[Path]:
    """The image files among paths, and those in folders.

    Raises:
        FileNotFoundError: a path does not exist, or a folder has no images.
        ValueError: two images have the same name, and so would their pictures.
    """
    images: list[Path] = []
    for path in map(Path, paths):
        found = [path] if path.is_file() else []
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES)
        if not found:
            raise FileNotFoundError(f"there is no image {path}")
        images += found
    stems = [image.stem for image in images]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise ValueError(f"images named {twice} come twice; their pictures need distinct names")
    return images


def _load_d2(config: str, weights: str, deploy: bool) -> Predict:
    from detectron2.config import get_cfg
    from detectron2.data.detection_utils import read_image
    from detectron2.utils.visualizer import Visualizer

    from ..d2 import GramPredictor, add_gram_backbones_config
    from ..d2.config import merge_config
    from ..data import naming_picture

    cfg = get_cfg()
    add_gram_backbones_config(cfg)
    merge_config(cfg, config, ["MODEL.WEIGHTS", weights, "TEST.DEPLOY", str(deploy)])
    predictor = GramPredictor(cfg)
    metadata = getattr(predictor, "metadata", None)  # of DATASETS.TEST, which may be empty
    names = metadata.get("thing_classes") if metadata else None

    def predict(image: Path, picture: Path, score: float) -> dict[str, Any]:
        with naming_picture(image):
            pixels = read_image(str(image), "BGR")
        instances = predictor(pixels)["instances"].to("cpu")
        canvas = Visualizer(pixels[:, :, ::-1], metadata)
        canvas.draw_instance_predictions(instances[instances.scores >= score]).save(str(picture))
        boxes, scores = instances.pred_boxes.tensor, instances.scores
        return _as_plain(boxes, scores, instances.pred_classes, names)

    return predict


def _load_mmdet(config: str, weights: str, deploy: bool) -> Predict:
    import mmcv
    from mmdet.apis import inference_detector
    from mmdet.registry import VISUALIZERS

    from ..data import naming_picture
    from ..mmdet.inference import load_detector

    model: Any = load_detector(config, weights, deploy=deploy)
    # Without backends: they keep copies of what is drawn, in a folder of their own.
    visualizer = VISUALIZERS.build({**model.cfg.visualizer, "vis_backends": None})
    visualizer.dataset_meta = model.dataset_meta
    names = model.dataset_meta.get("classes")

    def predict(image: Path, picture: Path, score: float) -> dict[str, Any]:
        with naming_picture(image):
            pixels = mmcv.imread(str(image), channel_order="rgb")
            if pixels is None:
                raise ValueError("no decoder takes it")
        sample = inference_detector(model, str(image)).cpu()
        visualizer.add_datasample(
            "", pixels, sample, draw_gt=False, pred_score_thr=score, out_file=str(picture)
        )
        found = sample.pred_instances
        return _as_plain(found.bboxes, found.scores, found.labels, names)

    return predict


def _as_plain(boxes: Any, scores: Any, classes: Any, names: Sequence[str] | None) -> dict[str, Any]:
    tensors = dict(boxes=boxes, scores=scores, classes=classes)
    found: dict[str, Any] = {name: tensor.tolist() for name, tensor in tensors.items()}
    if names:
        found["names"] = [names[index] for index in found["classes"]]
    return found
