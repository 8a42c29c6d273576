"""What is predicted on: images, folders, globs, videos, cameras."""

import os
import signal

import numpy as np
import pytest
from PIL import Image

from gram_backbones.data import PictureError, read_picture
from gram_backbones.predictions import sources
from gram_backbones.predictions.sources import Source, count_frames, find_sources, read_batches

cv2 = pytest.importorskip("cv2", reason="OpenCV comes with the frameworks")


def save(path, size=(40, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (250, 10, 20)).save(path, **options)
    return str(path)


def save_video(path, frames=5, size=(64, 48)):
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, size)
    for index in range(frames):
        video.write(
            np.full((*size[::-1], 3), (0, 0, 40 * index), np.uint8)
        )  # BGR: redder and redder
    video.release()
    return str(path)


def read_all(found, size=2):
    unread = []
    batches = [*read_batches(found, size, lambda source, error: unread.append(str(error)))]
    return batches, unread


def test_files_folders_and_globs(tmp_path):
    files = [save(tmp_path / name) for name in ("a/1.jpg", "a/deep/2.PNG", "b/3[x].png")]
    clip = save_video(tmp_path / "a/clip.avi")
    (tmp_path / "a/notes.txt").touch()
    kinds = {file: "image" for file in files} | {clip: "video"}

    def found(*inputs):
        return [(source.path, source.kind) for source in find_sources(inputs)]

    assert found(str(tmp_path / "a")) == [(p, kinds[p]) for p in (files[0], clip)]
    assert found(f"{tmp_path}/a/**/*") == [(p, kinds[p]) for p in (files[0], clip, files[1])]
    assert found(files[0], f"{tmp_path}/a/*.jpg") == [(files[0], "image")]
    assert found(files[2], "3") == [(files[2], "image"), ("3", "camera")]
    assert found(f"{tmp_path}/a/notes.txt") == [(f"{tmp_path}/a/notes.txt", "image")]


@pytest.mark.parametrize(
    ("name", "message"),
    (
        ("gone.jpg", "there is no image, video or folder '.*gone.jpg'"),
        ("empty", "folder '.*empty' has no images or videos"),
        ("*.jpg", r"no image or video matches '.*\*.jpg'"),
    ),
)
def test_inputs_that_name_nothing(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=message):
        find_sources([str(tmp_path / name)])


def test_the_same_name_in_two_folders_is_refused(tmp_path):
    one, other = save(tmp_path / "a/1.jpg"), save(tmp_path / "b/1.png")
    with pytest.raises(ValueError, match=f"{one} and {other} would both be drawn as 1.png"):
        find_sources([str(tmp_path / "a"), str(tmp_path / "b")])


def test_batches_hold_no_more_frames_than_asked_and_leave_out_what_cannot_be_read(tmp_path):
    first, clip = save(tmp_path / "1.jpg"), save_video(tmp_path / "clip.avi")
    broken, no_video = tmp_path / "broken.jpg", tmp_path / "no.mp4"
    broken.write_bytes(b"no picture")
    no_video.write_bytes(b"no video")
    found = find_sources([first, str(broken), clip, str(no_video)])
    batches, unread = read_all(found)
    assert [len(batch) for batch in batches] == [2, 2, 2]
    frames = sum(batches, [])
    assert [frame.name for frame in frames] == [first, *(f"{clip}#{i}" for i in range(5))]
    assert [frame.rate for frame in frames] == [None] + [10] * 5
    reds = [frame.image[..., 0].mean() for frame in frames[1:]]
    assert np.allclose(reds, np.arange(5) * 40, atol=4) and frames[5].image[..., 2].max() < 8
    assert [line.split(":")[0] for line in unread] == [
        f"cannot read picture {broken}",
        f"cannot read video {no_video}",
    ]
    assert count_frames(found) == 8  # those that cannot be read count once
    assert count_frames([*found, Source("0", "camera")]) is None


def test_a_batch_is_read_when_it_is_asked_for(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(sources, "read_picture", lambda path: read.append(path) or np.zeros(1))
    found = find_sources([save(tmp_path / f"{i}.jpg") for i in range(5)])
    next(read_batches(found, 2, print))
    assert len(read) == 2


def test_an_absent_camera_is_one_sentence(capfd):
    with pytest.raises(PictureError, match="^there is no camera 97, or another program uses it$"):
        sources.require_cameras([Source("97", "camera")])
    assert capfd.readouterr() == ("", "")  # OpenCV says nothing


class Camera:
    """Frames without end."""

    def __init__(self, place):
        assert place == 0

    def isOpened(self):
        return True

    def get(self, key):
        return 0.0

    def read(self):
        return True, np.zeros((4, 6, 3), np.uint8)

    def release(self):
        pass


def test_a_camera_s_frames_end_with_ctrl_c(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    before = signal.getsignal(signal.SIGINT)
    frames = sources.read_frames(Source("0", "camera"))
    assert [next(frames).number for _ in range(3)] == [0, 1, 2]
    os.kill(os.getpid(), signal.SIGINT)
    assert [*frames] == [] and signal.getsignal(signal.SIGINT) is before


def test_a_camera_s_frames_count_by_the_clock(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    clock = iter((100.0, 100.0, 100.4, 100.41))  # the first frame took 0.4 s to compute
    monkeypatch.setattr(sources.time, "monotonic", lambda: next(clock))
    frames = sources.read_frames(Source("0", "camera"))
    assert [next(frames).number for _ in range(3)] == [0, 10, 11]  # at 25 frames per second
    frames.close()


def test_pictures_are_read_as_they_are_shown(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_picture(save(tmp_path / "turned.jpg", exif=exif)).shape == (40, 30, 3)
    Image.new("I;16", (4, 4), 60000).save(tmp_path / "deep.png")
    with pytest.raises(PictureError, match="deep.png.*more than 8 bits"):
        read_picture(tmp_path / "deep.png")
    Image.new("LA", (4, 5), (70, 9)).save(tmp_path / "grey.png")
    assert (read_picture(tmp_path / "grey.png") == 70).all()
