"""Small data sets for tests: three classes of COCO's photographs under other category ids."""

import json

from tests.conftest import DATASETS

# Ids that neither begin at 1 nor are listed in order.
CATEGORIES = {"person": 50, "chair": 3, "car": 17}
CLASSES = ["chair", "car", "person"]  # in the order of the ids


def write_subset(folder, train=4, val=2):
    """``{train,val}.json`` and links ``{train,val}/`` to COCO's folders, in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("val", val)):
        file = DATASETS / f"coco/annotations/instances_{split}2017.json"
        content = json.loads(file.read_text())
        names = {c["id"]: c["name"] for c in content["categories"]}
        annotations = [
            {**a, "category_id": CATEGORIES[names[a["category_id"]]]}
            for a in content["annotations"]
            if names[a["category_id"]] in CATEGORIES and a["segmentation"]
        ]
        kept = sorted({a["image_id"] for a in annotations if not a["iscrowd"]})[:count]
        small = {
            "images": [image for image in content["images"] if image["id"] in kept],
            "annotations": [a for a in annotations if a["image_id"] in kept],
            "categories": [dict(id=i, name=name) for name, i in CATEGORIES.items()],
        }
        (folder / f"{split}.json").write_text(json.dumps(small))
        (folder / split).symlink_to(DATASETS / f"coco/{split}2017")
    return folder
