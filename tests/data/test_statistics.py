"""Statistics of data sets, in text and as a plot."""

import json

import pytest

from gram_backbones.data import gather_statistics, read_coco


def annotation(number, image, category, side, **more):
    box = dict(bbox=[0, 0, side, side], area=side**2, iscrowd=0)
    return dict(id=number, image_id=image, category_id=category, **box) | more


@pytest.fixture
def dataset(tmp_path):
    content = dict(
        images=[dict(id=i, file_name=f"{i}.jpg", width=600 + i, height=400) for i in range(4)],
        categories=[dict(id=9, name="dog"), dict(id=3, name="cat"), dict(id=5, name="emu")],
        annotations=[
            annotation(1, 0, 9, 31),
            annotation(2, 0, 9, 32),
            annotation(3, 1, 9, 96),
            annotation(4, 1, 3, 95),
            annotation(5, 2, 3, 200, iscrowd=1),
            annotation(6, 77, 3, 50),  # there is no such picture
            annotation(7, 1, 3, 50, bbox=None),
        ],
    )
    (tmp_path / "pets.json").write_text(json.dumps(content))
    return read_coco("pets", tmp_path / "pets.json", tmp_path)


def test_crowds_and_entries_that_cannot_be_used_are_no_objects(dataset):
    found = gather_statistics(dataset)
    assert [*found.areas] == ["cat", "emu", "dog"]  # by id
    assert found.sizes() == {"small": 1, "medium": 2, "large": 1}
    assert found.sizes("dog") == {"small": 1, "medium": 1, "large": 1}
    assert found.pictures == {"cat": 1, "emu": 0, "dog": 2}
    assert (found.crowds, found.annotated, len(found.shapes)) == (1, 3, 4)


def test_the_text_says_what_matters(dataset):
    lines = gather_statistics(dataset).text().splitlines()
    assert lines[0] == ("pets: 4 pictures, 1 without annotations; 4 objects of 3 classes, 1 crowds")
    assert lines[1] == "sizes: 1 small (25%), 2 medium (50%), 1 large (25%)"
    assert lines[2].endswith("widths 600 to 603 (median 601.5) pixels")
    assert lines[5].split() == ["dog", "3", "2", "1", "1", "1"]
    assert lines[-1] == "1 classes without objects: emu"


def test_a_data_set_without_pictures_has_a_text(tmp_path):
    content = dict(images=[], annotations=[], categories=[dict(id=1, name="dog")])
    (tmp_path / "none.json").write_text(json.dumps(content))
    text = gather_statistics(read_coco("none", tmp_path / "none.json", tmp_path)).text()
    assert text.startswith("none: 0 pictures, 0 without annotations; 0 objects of 1 classes")


def test_the_plot_is_written_whole_or_not_at_all(dataset, tmp_path):
    pytest.importorskip("matplotlib")
    found = gather_statistics(dataset)
    found.draw(tmp_path / "pets.svg")
    drawn = (tmp_path / "pets.svg").read_text()
    assert drawn.startswith("<?xml")
    with pytest.raises(ValueError, match="nothing"):
        found.draw(tmp_path / "pets.nothing")
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".svg"}
