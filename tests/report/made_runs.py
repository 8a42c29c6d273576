"""Data and run folders as the frameworks leave them, made without either."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from gram_backbones.run_record import RunRecord

CLASSES = ("disc", "box", "star")
SIZE = 96


def make_data(folder: Path, images: int = 6) -> tuple[Path, Path]:
    """Annotations of three objects an image, and the folder of the pictures."""
    rng = np.random.default_rng(0)
    root = folder / "images"
    root.mkdir(parents=True)
    content = {"images": [], "annotations": [], "categories": []}
    # Ids with gaps, listed in another order.
    content["categories"] = [{"id": 5 * i + 3, "name": n} for i, n in enumerate(CLASSES)][::-1]
    for image in range(1, images + 1):
        name = f"{image:06d}.png"
        pixels = rng.integers(0, 255, (SIZE, SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(root / name)
        size = {"width": SIZE, "height": SIZE}
        content["images"].append({"id": image, "file_name": name, **size})
        for number in range(3):
            x, y, width = 4 + 30 * number, int(rng.integers(4, 50)), int(rng.integers(12, 26))
            corners = [x, y, x + width, y, x + width, y + 30, x, y + 30]
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image,
                    "category_id": 5 * ((image + number) % 3) + 3,
                    "bbox": [x, y, width, 30],
                    "area": width * 30,
                    "iscrowd": 0,
                    "segmentation": [corners],
                }
            )
    file = folder / "val.json"
    file.write_text(json.dumps(content))
    return file, root


def predict(annotations: Path, mistaken: int | None = 1) -> list[dict]:
    """Results of masks and boxes, right ones but for the image ``mistaken``.

    There, one class is wrong, one prediction is of nothing, and so two objects are missed.
    """
    from pycocotools import mask

    results = []
    for item in json.loads(annotations.read_text())["annotations"]:
        rle = mask.merge(mask.frPyObjects(item["segmentation"], SIZE, SIZE))
        result = {key: item[key] for key in ("image_id", "category_id", "bbox")}
        result["segmentation"] = {**rle, "counts": rle["counts"].decode()}
        result["score"] = 0.9 - 0.001 * item["id"]
        results.append(result)
    if mistaken is None:
        return results
    wrong, nothing, missed = (r for r in results if r["image_id"] == mistaken)
    wrong["category_id"] = {3: 8, 8: 13, 13: 3}[wrong["category_id"]]
    results.remove(missed)
    rle = mask.merge(mask.frPyObjects([[80, 85, 95, 85, 95, 95, 80, 95]], SIZE, SIZE))
    rle["counts"] = rle["counts"].decode()
    nothing.update(bbox=[80, 85, 15, 10], segmentation=rle)
    return results


def make_record(annotations: Path, root: Path, name: str, **options) -> RunRecord:
    """What a run on this data says about itself."""
    changes = {"SOLVER.BASE_LR": ("0.02", options.pop("lr", "0.04")), "SEED": ("-1", "0")}
    return RunRecord(
        versions={"torch": "2.14.1"},
        device="cpu",
        seed=0,
        weights="",
        datasets={name: (str(annotations), str(root))},
        base="Detectron2's defaults",
        changes=changes,
        command=("train_net.py",),
        **options,
    )


def make_d2_run(folder: Path, annotations: Path, root: Path, lr: str = "0.04") -> Path:
    """A finished run of 60 iterations."""
    results = folder / "inference/made_val/coco_instances_results.json"
    results.parent.mkdir(parents=True)
    results.write_text(json.dumps(predict(annotations)))
    lines = [
        {"iteration": i, "total_loss": 3 - i / 40, "loss_cls": 1.5, "lr": 0.04, "time": 0.5}
        for i in (19, 39, 59)
    ]
    lines[1]["bbox/AP"] = 40.0
    lines.append({"iteration": 60, "bbox/AP": 77.0, "bbox/AP50": 80.0, "segm/AP": 70.0})
    (folder / "metrics.json").write_text("\n".join(map(json.dumps, lines)) + "\n")
    (folder / "config.yaml").write_text("SEED: 0\n")
    log = "[11/26 13:05:33] d2.data WARNING: 3 annotations <look> odd\n"
    (folder / "log.txt").write_text(log)
    (folder / "model_final.pth").write_bytes(b"weights")
    (folder / "last_checkpoint").write_text("model_final.pth")
    make_record(annotations, root, "made_val", iterations=60, lr=lr).write(folder)
    return folder


def make_mmdet_run(folder: Path, annotations: Path, root: Path) -> Path:
    """A run after one of two epochs, with boxes and masks in two files."""
    start = folder / "20260101_120000"
    (start / "vis_data").mkdir(parents=True)
    lines = [
        {"lr": 0.1, "loss": 3.0, "loss_cls": 2.0, "epoch": 1, "iter": 10, "step": 10},
        {"coco/bbox_mAP": 0.7, "coco/bbox_mAP_50": 0.8, "step": 1},
    ]
    (start / "vis_data/scalars.json").write_text("\n".join(map(json.dumps, lines)))
    (start / "20260101_120000.log").write_text(
        "2026/01/01 12:00:01 - mmengine - INFO - Epoch(train)  [1][10/10]  lr: 1.0e-01\n"
    )
    found = predict(annotations)
    boxes = [{k: v for k, v in item.items() if k != "segmentation"} for item in found]
    masks = [{k: v for k, v in item.items() if k != "bbox"} for item in found]
    (folder / "predictions").mkdir()
    for kind, items in (("bbox", boxes), ("segm", masks)):
        (folder / f"predictions/val.{kind}.json").write_text(json.dumps(items))
    make_record(annotations, root, "val", epochs=2).write(folder)
    return folder
