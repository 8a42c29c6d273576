"""Kinds of pictures: those that both frameworks read as Pillow does, and those that are refused."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from gram_backbones.data import PictureError, PictureGuard, naming_picture
from gram_backbones.data.pictures import picture_problems

SIZE = (64, 48)  # width and height of those that are read


def drawn(size=SIZE):
    """A smooth picture, as JPEG decoders may differ at sharp edges."""
    noise = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def _with_alpha(mode):
    picture = drawn().convert(mode)
    picture.putalpha(drawn().convert("L"))
    return picture


def _save_rotated(path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    drawn().save(path, exif=exif)


def _save_animated(path):
    frames = [drawn().convert("P"), drawn().rotate(180).convert("P")]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def _save_deep(path):
    Image.fromarray(np.asarray(drawn().convert("L")).astype(np.uint16) * 257).save(path)


def _save_deep_colours(path):
    cv2 = pytest.importorskip("cv2")
    cv2.imwrite(str(path), np.asarray(drawn()).astype(np.uint16) * 257)


def _save_cut(path, part):
    drawn().save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])


# File names, and what writes them.
READ = {
    "colour.jpg": lambda path: drawn().save(path),
    "progressive.jpg": lambda path: drawn().save(path, progressive=True),
    "colour.webp": lambda path: drawn().save(path, lossless=True),
    "grey.jpg": lambda path: drawn().convert("L").save(path),
    "grey.png": lambda path: drawn().convert("L").save(path),
    "grey-alpha.png": lambda path: _with_alpha("LA").save(path),
    "alpha.png": lambda path: _with_alpha("RGBA").save(path),
    "cmyk.jpg": lambda path: drawn().convert("CMYK").save(path),
    "palette.png": lambda path: drawn().convert("P").save(path),
    "transparent-palette.png": lambda path: drawn().convert("P").save(path, transparency=3),
    "bits.png": lambda path: drawn().convert("1").save(path),
    "animated.gif": _save_animated,
    "1x1.png": lambda path: drawn((1, 1)).save(path),
    "wide.png": lambda path: drawn((20_000, 30)).save(path),
    "png-inside.jpg": lambda path: drawn().save(path, format="PNG"),
    "jpeg-inside.png": lambda path: drawn().save(path, format="JPEG"),
    **{f"exif{o}.jpg": lambda path, o=o: _save_rotated(path, o) for o in range(1, 9)},
    "exif6.png": lambda path: _save_rotated(path, 6),
}
REFUSED = {
    "missing.jpg": lambda path: None,
    "empty.jpg": lambda path: path.write_bytes(b""),
    "corrupt.jpg": lambda path: path.write_bytes(b"no picture"),
    "half.jpg": lambda path: _save_cut(path, 0.6),
    "half.png": lambda path: _save_cut(path, 0.6),
    "half.webp": lambda path: _save_cut(path, 0.6),
    "header.jpg": lambda path: _save_cut(path, 0.02),
    "deep.png": _save_deep,
    "deep.tif": _save_deep,
    "deep-colours.png": _save_deep_colours,
    "other-size.png": lambda path: drawn((30, 40)).save(path),
}


def shown(path):
    """``(H, W, 3)`` RGB pixels as Pillow shows them."""
    with Image.open(path) as picture:
        return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))


def size_for(path):
    """What the annotations say: the width and the height as shown, or those of a sound one."""
    return shown(path).shape[1::-1] if path.name in READ else SIZE


@pytest.mark.parametrize("name", READ)
def test_check_data_finds_nothing_wrong(tmp_path, name):
    path = tmp_path / name
    READ[name](path)
    kinds = {kind for kind, _ in picture_problems(str(path), size_for(path))}
    assert kinds == ({"rotated by EXIF"} if "exif" in name and "1" not in name else set())


@pytest.mark.parametrize("name", REFUSED)
def test_check_data_names_what_is_wrong(tmp_path, name):
    path = tmp_path / name
    REFUSED[name](path)
    problems = [*picture_problems(str(path), SIZE)]
    assert len(problems) == 1 and str(path) in problems[0][1]


def test_an_orientation_that_means_nothing_is_no_rotation(tmp_path):
    _save_rotated(tmp_path / "0.jpg", 0)
    assert [*picture_problems(str(tmp_path / "0.jpg"), SIZE)] == []


@pytest.mark.parametrize("name", ("deep.png", "deep-colours.png"))
def test_what_a_reader_would_clip_is_refused_before_it_is_read(tmp_path, name):
    REFUSED[name](tmp_path / name)
    with pytest.raises(PictureError, match=f"{name}: .* more than 8 bits a channel; save it"):
        with naming_picture(tmp_path / name):
            pytest.fail("the block ran")


def test_pictures_are_left_out_until_too_many_are(caplog):
    guard = PictureGuard(may_skip=2)

    def fail(sample):
        raise ValueError("cut short")

    for path in ("a.jpg", "b.jpg", "a.jpg"):
        assert guard.read(fail, None, path) is None
    assert [record.message[:34] for record in caplog.records] == [
        "Left out a picture (1 so far): can",
        "Left out a picture (2 so far): can",
    ]
    with pytest.raises(PictureError, match="c.jpg"):
        guard.read(fail, None, "c.jpg")
