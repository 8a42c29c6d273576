"""Own data sets: reading by a text, conversion of folders, and what the check finds."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gram_backbones.data import (
    DataError,
    PictureError,
    check_data,
    checking,
    in_id_order,
    naming_picture,
    read_dataset,
    read_pair,
    require_sound,
)
from gram_backbones.data.checking import ERROR, KINDS
from tests.conftest import DATASETS, ROOT, needs_coco

SQUARE = [[2, 2, 12, 2, 12, 12, 2, 12]]


def write_picture(path, size=(32, 24), **options):
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, **options)


def entry(number, image=1, category=7, bbox=(2, 2, 10, 10), **more):
    own = dict(id=number, image_id=image, category_id=category, bbox=list(bbox))
    return own | dict(area=100, iscrowd=0) | more


def content(images=3, **changes):
    """Sound data: ids of classes that neither begin at 1 nor are in the order of the file."""
    names = [f"{i}.png" for i in range(1, images + 1)]
    sound = {
        "images": [
            dict(id=i, file_name=name, width=32, height=24) for i, name in enumerate(names, 1)
        ],
        "annotations": [
            entry(i, image=i, category=c, segmentation=SQUARE, iscrowd=0)
            for i, c in zip(range(1, images + 1), (7, 3, 50))
        ],
        "categories": [
            dict(id=50, name="zebra"),
            dict(id=3, name="dog"),
            dict(id=7, name="cat"),
        ],
    }
    return sound | changes


def write(folder, data=None, name="my_train"):
    """A data set's files and the text that names them."""
    data = data or content()
    images = folder / "images"
    images.mkdir(exist_ok=True, parents=True)
    for image in data["images"]:
        if isinstance(image, dict) and "file_name" in image:
            write_picture(images / image["file_name"])
    file = folder / f"{name}.json"
    file.write_text(json.dumps(data))
    return f"{name}={file}:{images}/"


def kinds(dataset, **options):
    return [finding.kind for finding in check_data(dataset, **options).findings]


def test_classes_are_in_the_order_of_their_ids(tmp_path):
    data = read_dataset(write(tmp_path))
    assert data.classes == ("dog", "cat", "zebra") and data.category_ids == (3, 7, 50)
    assert data.listed == ("zebra", "dog", "cat") and data.has_masks
    sorted_copy = in_id_order(data, tmp_path / "out")
    again = read_dataset(f"again={sorted_copy.json_file}:{sorted_copy.image_root}")
    assert again.listed == again.classes == data.classes
    assert kinds(data, masks=True) == []


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    (
        ("train.json:images", DataError, "name=annotations.json:images/"),
        ("my_train=gone.json:images", FileNotFoundError, "gone.json does not exist"),
        ("my_train=gone.json", FileNotFoundError, "gone.json does not exist; give name="),
        ("my_train=FOLDER", DataError, "known are YOLO"),
        ("my_train=FOLDER/text.json:FOLDER", DataError, "it is not JSON"),
        ("my_train=FOLDER/list.json:FOLDER", DataError, "it has no list 'images'"),
        ("my_train=FOLDER/ids.json:FOLDER", DataError, "category '7': id '7'"),
    ),
)
def test_what_cannot_be_read_is_refused_with_a_sentence(tmp_path, spec, error, message):
    (tmp_path / "text.json").write_text("<xml>")
    (tmp_path / "list.json").write_text("[]")
    ids = content(categories=[dict(id="7", name="cat")])
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    with pytest.raises(error, match=message):
        read_dataset(spec.replace("FOLDER", str(tmp_path)))


def test_a_path_with_colons_is_read(tmp_path):
    spec = write(tmp_path / "run-12:30")
    assert read_dataset(spec).image_root.endswith("12:30/images/")


def test_training_and_evaluation_have_the_same_classes(tmp_path):
    train = write(tmp_path / "train")
    other = content(categories=[dict(id=3, name="dog"), dict(id=7, name="cow")])
    val = write(tmp_path / "val", other, name="my_val")
    with pytest.raises(DataError, match=r"\['dog', 'cat', 'zebra'\], but .*\['dog', 'cow'\]"):
        read_pair(train, val)
    with pytest.raises(DataError, match="both data sets are named 'my_train'"):
        read_pair(train, train)


# What is wrong, as changes of sound data, and the kind that must be found.
BAD_ANNOTATIONS = {
    "malformed entry": [entry(1, bbox=(1, 2, 3))],
    "nothing to learn": [],
    "duplicate id": [entry(1), entry(1)],
    "unknown image id": [entry(1, image=9)],
    "unknown category id": [entry(1, category=1)],
    "negative box": [entry(1, bbox=(12, 12, -10, -10))],
    "zero box": [entry(1, bbox=(2, 2, 0, 5))],
    "box outside the picture": [entry(1, bbox=(40, 2, 5, 5))],
    "box over the border": [entry(1, bbox=(20, 2, 18, 12))],
    "corner boxes": [entry(i, bbox=(20, 10, 30 - i % 9, 20)) for i in range(1, 11)],
    "annotation id 0": [entry(0)],
    "malformed mask": [entry(1, segmentation={"a": 1})],
    "mask outside the picture": [entry(1, segmentation=[[40, 2, 50, 2, 50, 9]])],
    "no mask": [entry(1, segmentation=[])],
    "invalid polygon": [entry(1, segmentation=[[1, 1, 5, 5]])],
    "class without annotations": [entry(1)],
    "picture without annotations": [entry(1)],
}


@pytest.mark.parametrize("kind", BAD_ANNOTATIONS)
def test_bad_annotations_are_found_without_opening_pictures(tmp_path, kind):
    bad = content(annotations=BAD_ANNOTATIONS[kind])
    data = read_dataset(write(tmp_path, bad))
    found = kinds(data, pictures=False, masks=kind == "no mask")
    assert kind in found
    severities = [KINDS[kind][0] for kind in found]
    assert severities == sorted(severities)  # errors first
    if KINDS[kind][0] == ERROR:
        with pytest.raises(DataError, match=kind):
            require_sound([data], [data], masks=kind == "no mask")


def test_an_invalid_polygon_does_not_stop_a_training_which_drops_it(tmp_path):
    bad = content()
    bad["annotations"].append(entry(4, segmentation=[[1, 1, 5, 5], *SQUARE]))
    data = read_dataset(write(tmp_path, bad))
    assert "warning: invalid polygon, 1 time" in require_sound([data], masks=True)[0]
    with pytest.raises(DataError, match="error: invalid polygon, 1 time"):
        require_sound([], [data])


@pytest.mark.parametrize("key", ("area", "iscrowd"))
def test_what_evaluation_reads_must_be_there(key, tmp_path):
    bad = content(annotations=[entry(1, **{key: None})])
    assert "malformed entry" in kinds(read_dataset(write(tmp_path, bad)), pictures=False)


def test_a_box_that_is_not_a_number_is_found(tmp_path):
    """JSON has no NaN, but Python writes and reads it."""
    bad = content(annotations=[entry(1, bbox=(1, 2, float("nan"), 3))])
    assert "malformed entry" in kinds(read_dataset(write(tmp_path, bad)), pictures=False)


@pytest.mark.parametrize(
    ("key", "kind", "extra"),
    (
        ("images", "duplicate id", dict(id=1, file_name="2.png", width=32, height=24)),
        ("images", "picture listed twice", dict(id=9, file_name="2.png", width=32, height=24)),
        ("images", "malformed entry", dict(id=9, file_name="9.png", width=0, height=24)),
        ("categories", "duplicate id", dict(id=7, name="other")),
        ("categories", "duplicate class name", dict(id=8, name="cat")),
    ),
)
def test_bad_lists_of_pictures_and_classes_are_found(tmp_path, key, kind, extra):
    data = content()
    data[key].append(extra)
    assert kind in kinds(read_dataset(write(tmp_path, data)), pictures=False)


def test_pictures_for_evaluation_need_no_annotations(tmp_path):
    """COCO's test pictures have none."""
    test = content()
    del test["annotations"]
    data = read_dataset(write(tmp_path, test))
    assert require_sound([], [data]) == []
    with pytest.raises(DataError, match="nothing to learn"):
        require_sound([data])


def spoil(path, kind):
    if kind == "missing picture":
        path.unlink()
    elif kind == "corrupt picture":
        path.write_bytes(b"no picture")
    elif kind == "truncated picture":
        write_picture(path, format="JPEG")
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "16-bit picture":
        Image.fromarray(np.full((24, 32), 40000, np.uint16)).save(path)
    elif kind == "other size":
        write_picture(path, (30, 24))
    else:
        exif = Image.Exif()
        exif[0x0112] = 6 if kind == "annotated before rotation" else 3
        write_picture(path, format="JPEG", exif=exif)


PICTURES = (
    "missing picture",
    "corrupt picture",
    "truncated picture",
    "16-bit picture",
    "other size",
    "annotated before rotation",
    "rotated by EXIF",
)


@pytest.mark.parametrize("kind", PICTURES)
def test_bad_pictures_are_found_and_named(tmp_path, kind):
    data = read_dataset(write(tmp_path))
    spoil(tmp_path / "images/2.png", kind)
    report = check_data(data)
    assert [(f.kind, "2.png" in f.where) for f in report.findings] == [(kind, True)]
    headers = [f.kind for f in check_data(data, pictures=False).findings]
    assert headers == ([] if kind == "truncated picture" else [kind])


def test_colours_of_16_bits_are_found(tmp_path):
    """Pillow reads such a PNG as 8-bit RGB; its mode does not tell."""
    cv2 = pytest.importorskip("cv2")
    data = read_dataset(write(tmp_path))
    cv2.imwrite(str(tmp_path / "images/1.png"), np.full((24, 32, 3), 40000, np.uint16))
    assert kinds(data) == ["16-bit picture"]


def test_where_time_is_short_the_report_says_how_many_pictures_were_opened(tmp_path, monkeypatch):
    data = read_dataset(write(tmp_path))
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"no picture")
    (tmp_path / "images/2.png").unlink()
    report = check_data(data, pictures=False, seconds=-1)
    assert (report.unopened, [f.kind for f in report.findings]) == (2, ["missing picture"])
    assert "opened 1 of 3 pictures" in report.text()
    write(tmp_path)
    assert require_sound([data]) == []
    monkeypatch.setattr(checking, "_SECONDS", -1)
    assert "opened 0 of 3 pictures" in require_sound([data])[0]


@pytest.mark.parametrize("kind", ("missing picture", "corrupt picture", "16-bit picture"))
def test_pictures_that_a_training_leaves_out_are_only_warned_of(tmp_path, kind):
    data = read_dataset(write(tmp_path))
    spoil(tmp_path / "images/2.png", kind)
    with pytest.raises(DataError, match=kind):
        require_sound([data])
    assert f"warning: {kind}" in require_sound([data], skip_unreadable=True)[0]
    with pytest.raises(DataError, match=kind):  # an evaluation leaves out none
        require_sound([], [data], skip_unreadable=True)


def test_an_annotation_id_of_0_matters_to_an_evaluation_only(tmp_path):
    boxes = [entry(i, category=category) for i, category in enumerate((7, 3, 50))]
    data = read_dataset(write(tmp_path, content(1, annotations=boxes)))
    assert require_sound([data]) == []
    with pytest.raises(DataError, match="annotation id 0, 1 time"):
        require_sound([], [data])


def test_every_kind_is_found_by_a_test_and_in_the_docs():
    lists = {"duplicate class name", "picture listed twice", "labels without a picture"}
    assert set(KINDS) == {*BAD_ANNOTATIONS, *PICTURES, *lists}
    page = (ROOT / "docs/own-data.md").read_text()
    for kind, (severity, consequence) in KINDS.items():
        assert f"| {kind} | {severity} | {consequence} |" in page


def test_the_text_names_the_first_places_and_json_all(tmp_path):
    boxes = [entry(i, bbox=(2, 2, -1, 5)) for i in range(1, 10)]
    report = check_data(read_dataset(write(tmp_path, content(annotations=boxes))), pictures=False)
    assert "error: negative box, 9 times" in report.text() and "and 4 more" in report.text()
    listed = [f for f in json.loads(report.json())["findings"] if f["kind"] == "negative box"]
    assert len(listed) == 9


def check_on_the_command_line(*arguments):
    command = [sys.executable, "-W", "ignore", "-m", "gram_backbones", "check-data"]
    command += [*map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_command_line_ends_with_1_if_there_are_errors(tmp_path):
    spec = write(tmp_path)
    done = check_on_the_command_line(spec, "--masks", "--json", tmp_path / "report.json")
    assert done.returncode == 0, done.stderr
    assert "my_train: 3 pictures, 3 annotations, 0 errors, 0 warnings" in done.stdout
    (tmp_path / "images/1.png").write_bytes(b"no picture")
    done = check_on_the_command_line(spec, "--json", tmp_path / "report.json")
    assert done.returncode == 1 and "error: corrupt picture" in done.stdout
    (report,) = json.loads((tmp_path / "report.json").read_text())
    assert report["findings"][0]["kind"] == "corrupt picture"
    done = check_on_the_command_line("gone")
    assert done.returncode == 2 and "Traceback" not in done.stderr and "check-data: " in done.stderr


def test_reading_and_checking_load_no_torch(tmp_path):
    code = (
        "import sys, gram_backbones.data as d;"
        f"d.check_data(d.read_dataset({write(tmp_path)!r}));"
        "assert not {'torch', 'supervision', 'detectron2', 'mmdet'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_an_error_while_a_picture_is_read_names_it_once():
    with pytest.raises(PictureError, match="street.jpg: OSError: truncated") as caught:
        with naming_picture("outer.jpg"), naming_picture("street.jpg"):
            raise OSError("truncated")
    assert "outer.jpg" not in str(caught.value)


LABELS = {"yolo": "labels", "voc": "Annotations", "labelme": "."}


def write_folder(folder, kind, names):
    """Pictures with one box each, of the classes ``names``."""
    images = folder / {"yolo": "images", "voc": "JPEGImages", "labelme": "."}[kind]
    images.mkdir(parents=True)
    if kind == "yolo":
        (folder / "labels").mkdir()
        (folder / "data.yaml").write_text("names: [zebra, cat]\n")
    if kind == "voc":
        (folder / "Annotations").mkdir()
    for i, name in enumerate(names):
        write_picture(images / f"{i}.png")
        if kind == "yolo":
            line = f"{['zebra', 'cat'].index(name)} 0.5 0.5 0.25 0.5\n"
            (folder / f"labels/{i}.txt").write_text(line)
        elif kind == "voc":
            box = "<xmin>13</xmin><ymin>7</ymin><xmax>21</xmax><ymax>19</ymax>"
            (folder / f"Annotations/{i}.xml").write_text(
                f"<annotation><filename>{i}.png</filename><object><name>{name}</name>"
                f"<bndbox>{box}</bndbox></object></annotation>"
            )
        else:
            shape = dict(label=name, shape_type="polygon")
            shape["points"] = [[12, 6], [20, 6], [20, 18], [12, 18]]
            labels = dict(imagePath=f"{i}.png", imageWidth=32, imageHeight=24, shapes=[shape])
            (folder / f"{i}.json").write_text(json.dumps(labels))


@pytest.mark.parametrize("kind", ("yolo", "voc", "labelme"))
def test_folders_of_other_formats_are_converted(tmp_path, kind):
    pytest.importorskip("supervision", reason="supervision is not installed")
    write_folder(tmp_path / "data/train", kind, ["zebra", "cat"])
    write_folder(tmp_path / "data/val", kind, ["cat"])
    train, val = read_pair(
        f"my_train={tmp_path}/data/train", f"my_val={tmp_path}/data/val", cache=tmp_path / "cache"
    )
    assert (
        train.classes == val.classes == (("zebra", "cat") if kind == "yolo" else ("cat", "zebra"))
    )
    assert train.has_masks == (kind == "labelme")
    for data in (train, val):
        assert [f.kind for f in check_data(data).errors] == []
        found = json.loads((tmp_path / "cache").glob(f"{data.name}*").__next__().read_text())
        names = {c["id"]: c["name"] for c in found["categories"]}
        first = found["annotations"][0]
        assert names[first["category_id"]] == ("zebra" if data is train else "cat")
        np.testing.assert_allclose(first["bbox"], [12, 6, 8, 12], atol=1)


def test_a_yolo_folder_without_classes_is_refused(tmp_path):
    write_folder(tmp_path / "train", "yolo", ["cat"])
    (tmp_path / "train/data.yaml").unlink()
    with pytest.raises(DataError, match="data.yaml, which lists the classes"):
        read_dataset(f"my_train={tmp_path}/train")


@pytest.mark.parametrize("kind", ("yolo", "voc"))
def test_labels_without_a_picture_are_warned_of(tmp_path, kind):
    pytest.importorskip("supervision", reason="supervision is not installed")
    write_folder(tmp_path / "train", kind, ["zebra", "cat", "cat"])
    next((tmp_path / "train").rglob("1.png")).unlink()
    (tmp_path / "train" / LABELS[kind] / "classes.txt").write_text("zebra\ncat\n")
    data = read_dataset(f"my_train={tmp_path}/train", cache=tmp_path)
    (found,) = (f for f in check_data(data).findings if f.kind == "labels without a picture")
    assert Path(found.where).stem == "1" and found.severity == "warning"


@pytest.mark.parametrize("kind", LABELS)
def test_all_files_of_a_folder_that_cannot_be_read_are_listed(tmp_path, kind):
    pytest.importorskip("supervision", reason="supervision is not installed")
    write_folder(tmp_path / "train", kind, ["cat"] * 5)
    files = sorted((tmp_path / "train" / LABELS[kind]).glob("*.[tjx]*"))
    files[1].write_text("0 0.5 0.5")
    files[2].write_bytes(b"\xff\xfe\x00")
    (picture,) = (tmp_path / "train").rglob("3.png")
    picture.write_bytes(b"no picture")
    if kind == "yolo":
        files[4].write_text("9 0.5 0.5 0.1 0.1\n")  # of two classes
    with pytest.raises(DataError) as caught:
        read_dataset(f"my_train={tmp_path}/train", cache=tmp_path)
    named = [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]]
    expected = files[1:5] if kind == "yolo" else files[1:4]
    assert named == [str(file) for file in expected]


@needs_coco
def test_coco_s_own_photographs_have_no_errors():
    coco = DATASETS / "coco"
    data = read_dataset(f"val={coco}/annotations/instances_val2017.json:{coco}/val2017")
    assert len(data.classes) == 80 and data.category_ids[-1] == 90
    assert check_data(data, masks=True, progress=False).errors == ()
