"""What annotations can be: each is named in one list, and never a stack trace."""

import json

import pytest

from gram_backbones.cli.check_data import main
from gram_backbones.data import DataError, check_data, read_dataset
from gram_backbones.data.masks import mask_problem
from tests.data.test_data import SQUARE, content, entry, write

NAN = float("nan")
RLE = {"size": [24, 32], "counts": [100, 68, 600]}
# 24 × 32 pixels: 100 background, 68 mask, 600 background, as pycocotools compresses it.
COMPRESSED = {"size": [24, 32], "counts": "T3T2hb0"}


def found(folder, **changes):
    data = read_dataset(write(folder, content() | changes))
    return [(f.kind, f.where) for f in check_data(data, pictures=False).errors]


# Values of an annotation, the kind of error, and what the place says of it.
ANNOTATIONS = {
    "empty box": (dict(bbox=[]), "malformed entry", "bbox []"),
    "inverted box": (dict(bbox=[12, 12, -8, -8]), "negative box", "[12, 12, -8, -8]"),
    "box outside": (dict(bbox=[90, 90, 5, 5]), "box outside the picture", "picture 32×24"),
    "NaN box": (dict(bbox=[1, NAN, 3, 3]), "malformed entry", "nan"),
    "infinite box": (dict(bbox=[1, 1, 3, float("inf")]), "malformed entry", "inf"),
    "a number that no float holds": (dict(bbox=[1, 1, 3, 10**400]), "malformed entry", "bbox"),
    "text in a box": (dict(bbox=["1", 1, 3, 3]), "malformed entry", "bbox ['1'"),
    "NaN area": (dict(area=NAN), "malformed entry", "area nan"),
    "unknown category": (dict(category_id=99), "unknown category id", "category id 99"),
    "category as text": (dict(category_id="7"), "malformed entry", "category_id '7'"),
    "unknown picture": (dict(image_id=99), "unknown image id", "image id 99"),
    "picture as a float": (dict(image_id=1.0), "malformed entry", "image_id 1.0"),
    "picture as text": (dict(image_id="1"), "unknown image id", "image id '1'"),
    "id as text": (dict(id="4"), "malformed entry", "id '4'"),
    "id as a float": (dict(id=4.0), "malformed entry", "id 4.0"),
    "id true": (dict(id=True), "malformed entry", "id True"),
    "duplicate id": (dict(id=1), "duplicate id", "annotation id 1, 2 times"),
    "id 0": (dict(id=0), "annotation id 0", "annotation 0 of 1.png"),
    "crowd 2": (dict(iscrowd=2), "malformed entry", "iscrowd 2"),
    "polygon of two points": (
        dict(segmentation=[[1, 1, 5, 5]]),
        "invalid polygon",
        "1 of 1 polygons has fewer than 3 points",
    ),
    "odd polygon": (
        dict(segmentation=[[1, 1, 5, 5, 1, 5, 3]]),
        "invalid polygon",
        "an odd number",
    ),
    "empty polygon": (dict(segmentation=[[]]), "invalid polygon", "fewer than 3 points"),
    "NaN polygon": (dict(segmentation=[[1, 1, NAN, 5, 5, 5]]), "malformed mask", "no numbers"),
    "polygon of texts": (dict(segmentation=[["1"] * 6]), "malformed mask", "no numbers"),
    "polygon without a list": (dict(segmentation=[1, 1, 5, 5, 5, 1]), "malformed mask", "lists"),
    "mask as text": (dict(segmentation="T3"), "malformed mask", "'T3'"),
    "polygon outside": (
        dict(segmentation=[[40, 2, 50, 2, 50, 9]]),
        "mask outside the picture",
        "from (40, 2) to (50, 9)",
    ),
    "a point far outside": (
        dict(segmentation=[[1, 1, 5, 5, 1e7, 9]]),
        "mask outside the picture",
        "to (1e+07, 9)",
    ),
    "a dict that is no RLE": (dict(segmentation={"a": 1}), "malformed mask", "dict of ['a']"),
    "RLE of another size": (
        dict(segmentation=RLE | {"size": [32, 24]}),
        "malformed mask",
        "size [32, 24]; [height, width] is [24, 32]",
    ),
    "RLE that is too short": (
        dict(segmentation=RLE | {"counts": [100, 68]}),
        "malformed mask",
        "cover 168 pixels; the picture has 768",
    ),
    "negative RLE": (dict(segmentation=RLE | {"counts": [800, -32]}), "malformed mask", "cover"),
    "RLE of floats": (
        dict(segmentation=RLE | {"counts": [700.0, 68.0]}),
        "malformed mask",
        "cover",
    ),
    "RLE without counts": (dict(segmentation=RLE | {"counts": None}), "malformed mask", "None"),
    "compressed RLE cut short": (
        dict(segmentation=COMPRESSED | {"counts": COMPRESSED["counts"][:-2]}),
        "malformed mask",
        "counts",
    ),
    "compressed RLE of other text": (
        dict(segmentation=COMPRESSED | {"counts": "!?"}),
        "malformed mask",
        "no run lengths",
    ),
}


@pytest.mark.parametrize("case", ANNOTATIONS)
def test_a_bad_annotation_is_named(tmp_path, case):
    changes, kind, says = ANNOTATIONS[case]
    data = content()
    data["annotations"].append(entry(4, category=3) | changes)
    errors = found(tmp_path, **data)
    assert [k for k, _ in errors] == [kind] and says in errors[0][1]


@pytest.mark.parametrize("value", (None, 7, "text", [], {}), ids=repr)
@pytest.mark.parametrize("key", ("images", "annotations"))
def test_an_entry_that_is_no_dict_is_named(tmp_path, key, value):
    data = content()
    data[key].append(value)
    errors = found(tmp_path, **data)
    assert [k for k, _ in errors] == ["malformed entry"] and "at position 3" in errors[0][1]


def test_all_problems_come_in_one_list(tmp_path):
    data = content()
    for number, case in enumerate(ANNOTATIONS, 10):
        data["annotations"].append(entry(number, category=3) | ANNOTATIONS[case][0])
    kinds = {kind for kind, _ in found(tmp_path, **data)}
    assert {kind for _, kind, _ in ANNOTATIONS.values()} <= kinds


def test_ids_of_images_are_of_one_kind(tmp_path):
    """Detectron2 sorts them."""
    data = content()
    data["images"].append(dict(id="4", file_name="4.png", width=32, height=24))
    assert found(tmp_path, **data)[0][0] == "malformed entry"
    for number, image in enumerate(data["images"]):
        image["id"] = f"picture {number}"
    for number, annotation in enumerate(data["annotations"]):
        annotation["image_id"] = f"picture {number}"
    assert found(tmp_path / "texts", **data) == []


def test_crowds_alone_are_nothing_to_learn(tmp_path):
    crowds = [a | {"iscrowd": 1, "segmentation": RLE} for a in content()["annotations"]]
    assert found(tmp_path, annotations=crowds) == [
        ("nothing to learn", "every annotation is a crowd (iscrowd 1)")
    ]


def test_an_area_of_0_is_a_zero_box(tmp_path):
    """MMDetection drops its box, Detectron2 keeps it."""
    data = content()
    data["annotations"][0]["area"] = 0
    report = check_data(read_dataset(write(tmp_path, data)), pictures=False)
    assert [(f.kind, f.where) for f in report.findings] == [
        ("zero box", "annotation 1 of 1.png: area 0")
    ]


def test_boxes_as_corners_are_told_from_boxes_over_the_border(tmp_path):
    corners = [(1, 1, 10, 10), *[(20, 10, 30, 20), (10, 12, 25, 23), (18, 3, 31, 22)] * 4]
    boxes = [entry(i, category=(7, 3, 50)[i % 3], bbox=box) for i, box in enumerate(corners, 1)]
    errors = found(tmp_path, annotations=boxes)
    where = "12 of 13 boxes leave their picture, and all are in it if read as x1, y1, x2, y2"
    assert errors == [("corner boxes", where)]
    few = found(tmp_path / "few", annotations=boxes[:10])  # 9 of them may leave it by chance
    assert few == []
    boxes[0]["bbox"] = [20, 2, 5, 5]  # its corner would be left of it
    assert found(tmp_path / "mixed", annotations=boxes) == []


def test_sound_masks_have_no_problem():
    """Also one that reaches a little over the border, and compressed run lengths."""
    mask = pytest.importorskip("pycocotools.mask")
    rle = mask.frPyObjects(RLE, 24, 32)
    assert rle["counts"].decode() == COMPRESSED["counts"]
    for segmentation in (SQUARE, [[-2, 2, 33, 2, 20, 26]], RLE, COMPRESSED):
        assert mask_problem(segmentation, 32, 24) is None


@pytest.mark.parametrize(
    ("category", "says"),
    (
        (dict(id="7", name="cow"), "category '7': id '7'"),
        (dict(id=7.0, name="cow"), "category 7.0: id 7.0"),
        (dict(id=8), "category 8: name None"),
        (None, "category at position 3: None"),
    ),
)
def test_all_malformed_categories_are_listed(tmp_path, category, says):
    data = content()
    data["categories"] += [category, dict(id=None, name="last")]
    with pytest.raises(DataError) as caught:
        read_dataset(write(tmp_path, data))
    assert says in str(caught.value) and "category None: id None" in str(caught.value)


@pytest.mark.parametrize("cut", (0.5, 0.99))
def test_a_file_cut_in_half_ends_the_command_in_a_sentence(tmp_path, capsys, cut):
    spec = write(tmp_path)
    file = tmp_path / "my_train.json"
    text = file.read_text()
    file.write_text(text[: int(len(text) * cut)])
    with pytest.raises(SystemExit) as caught:
        main([spec])
    assert caught.value.code == 2
    assert f"cannot read {file}: it is not JSON" in capsys.readouterr().err


def test_lists_nested_without_end_are_no_json(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="it is not JSON"):
        read_dataset(f"my={tmp_path}/deep.json:{tmp_path}")


@pytest.mark.slow
def test_a_large_file_is_checked_in_bounded_memory(tmp_path):
    """20,000 boxes: the check takes less than twice what the frameworks take to read them."""
    import tracemalloc

    boxes = [entry(i, category=(7, 3, 50)[i % 3]) for i in range(1, 20_001)]
    spec = write(tmp_path, content(annotations=boxes))
    tracemalloc.start()
    loaded = json.loads((tmp_path / "my_train.json").read_text())
    reading = tracemalloc.get_traced_memory()[0]
    del loaded
    tracemalloc.reset_peak()
    report = check_data(read_dataset(spec), pictures=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.annotations == 20_000 and report.errors == ()
    assert peak < 2 * reading
