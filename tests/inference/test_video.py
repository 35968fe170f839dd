"""Clips in, clips out: the frames, their order and their time."""

from __future__ import annotations

import os
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

import ddsm_zoo
from ddsm_zoo import Predictor
from ddsm_zoo.inference.video import VideoError, VideoSource, label_video
from ddsm_zoo.labels import LabelSpace
from tests.support.errors import raises

RED, BLUE = (200, 30, 30), (30, 30, 200)
LABELS = LabelSpace(names=("dark", "bright"), palette=(RED, BLUE))


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    """Says "bright" where a picture is bright: the backbone is left out."""
    torch.manual_seed(0)
    predictor = Predictor(ddsm_zoo.create_model("uper_tiny", labels=LABELS))
    predictor.predict = lambda image: torch.stack((-image.sum(1), image.sum(1)), 1)
    return predictor


def write_clip(path: Path, levels: list[int], size: tuple[int, int] = (48, 64), **options: object) -> Path:
    """A clip of gray frames, ten a second; the left half of each is black."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv444p"
        for level in levels:
            pixels = np.zeros((*size, 3), np.uint8)
            pixels[:, size[1] // 2 :] = level
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def write_noise(path: Path, count: int = 40, options: dict[str, str] | None = None, **stream_options: object) -> Path:
    """A clip of noise, ten frames a second: about the same number of bytes for each frame."""
    noise = np.random.default_rng(0)
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream("libvpx" if path.suffix == ".webm" else "libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = 48, 64, "yuv420p", 8
        for name, value in stream_options.items():
            setattr(stream.codec_context, name, value)
        for _ in range(count):
            frame = av.VideoFrame.from_ndarray(noise.integers(0, 256, (48, 64, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def frames_of(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def test_every_frame_is_shown_under_its_classes_at_its_time(predictor: Predictor, tmp_path: Path) -> None:
    levels = [250, 10, 250, 250, 10, 10, 250, 10, 250, 250, 10, 250]
    source = write_clip(tmp_path / "clip.mp4", levels)
    seen: list[tuple[int, int]] = []
    clip = label_video(
        predictor,
        VideoSource(name=str(source)),
        tmp_path / "out" / "clip.mp4",
        progress=lambda done, total: seen.append((done, total)),
    )
    frames = frames_of(tmp_path / "out" / "clip.mp4")
    assert len(frames) == clip.frames == len(levels)
    assert clip.size == (48, 64)
    assert seen == [(done, len(levels)) for done in range(1, len(levels) + 1)]
    times = [float(frame.time) for frame in frames]
    assert times == pytest.approx([index / 10 for index in range(len(levels))], abs=0.002)
    for frame, level in zip(frames, levels, strict=True):
        pixels = frame.to_ndarray(format="rgb24").astype(int)
        left, right = pixels[:, 8:24].mean((0, 1)), pixels[:, 40:56].mean((0, 1))
        assert left == pytest.approx(np.array(RED) / 2, abs=12)
        expected = (np.array(BLUE if level > 128 else RED) + level) / 2
        assert right == pytest.approx(expected, abs=12)
    assert clip.shares["bright"] == pytest.approx(levels.count(250) / len(levels) / 2, abs=0.02)
    assert clip.to_dict()["frames_per_second"] == pytest.approx(clip.frames / clip.seconds)


def test_an_odd_size_loses_its_last_row_and_column(predictor: Predictor, tmp_path: Path) -> None:
    source = write_clip(tmp_path / "odd.mkv", [250] * 3, (33, 47))
    label_video(predictor, VideoSource(name=str(source)), tmp_path / "out.mp4")
    assert {(frame.height, frame.width) for frame in frames_of(tmp_path / "out.mp4")} == {(32, 46)}


def test_frames_that_are_too_small_for_the_clip_to_come(predictor: Predictor, tmp_path: Path) -> None:
    with av.open(str(tmp_path / "line.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.height, stream.width, stream.pix_fmt = 1, 64, "gray"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((1, 64), np.uint8), format="gray")))
        container.mux(stream.encode(None))
    with raises(VideoError, kind="video", path="line.mkv", got=(64, 1)):
        label_video(predictor, VideoSource(name=str(tmp_path / "line.mkv")), tmp_path / "out" / "line.mp4")
    assert not (tmp_path / "out").exists()
    source = write_clip(tmp_path / "least.mkv", [250] * 2, (2, 3))
    label_video(predictor, VideoSource(name=str(source)), tmp_path / "out" / "least.mp4")
    assert {(frame.height, frame.width) for frame in frames_of(tmp_path / "out" / "least.mp4")} == {(2, 2)}


def test_no_more_frames_than_asked(predictor: Predictor, tmp_path: Path) -> None:
    source = write_clip(tmp_path / "clip.mp4", [250] * 9)
    assert label_video(predictor, VideoSource(name=str(source)), tmp_path / "out.mp4", frames=4).frames == 4
    assert len(frames_of(tmp_path / "out.mp4")) == 4


def test_a_device_gives_frames_until_it_is_told_to_stop(predictor: Predictor, tmp_path: Path) -> None:
    """FFmpeg's test pattern stands for a camera: it never ends either."""
    pattern = VideoSource(name="testsrc=size=64x48:rate=5", format="lavfi")
    clip = label_video(predictor, pattern, tmp_path / "out.mp4", frames=7)
    assert clip.frames == len(frames_of(tmp_path / "out.mp4")) == 7


def test_cameras_have_the_names_of_their_system(monkeypatch: pytest.MonkeyPatch) -> None:
    named = {}
    for system in ("linux", "darwin", "win32"):
        monkeypatch.setattr(sys, "platform", system)
        named[system] = VideoSource.camera(1)
    assert named["linux"] == VideoSource(name="/dev/video1", format="v4l2")
    assert named["darwin"] == VideoSource(name="1", format="avfoundation")
    assert named["win32"] == VideoSource(name="1", format="vfwcap")


@pytest.mark.parametrize(
    ("content", "error", "kind"),
    [(None, FileNotFoundError, "missing-file"), (b"no video at all", VideoError, "video")],
)
def test_what_is_no_video(
    predictor: Predictor, tmp_path: Path, content: bytes | None, error: type[Exception], kind: str
) -> None:
    if content is not None:
        (tmp_path / "clip.mp4").write_bytes(content)
    with raises(error, kind=kind, path=tmp_path / "clip.mp4"):
        label_video(predictor, VideoSource(name=str(tmp_path / "clip.mp4")), tmp_path / "out" / "clip.mp4")
    assert not (tmp_path / "out" / "clip.mp4").exists()


def test_a_camera_that_is_not_there(predictor: Predictor, tmp_path: Path) -> None:
    with raises(VideoError, kind="video", path="/dev/video63"):
        label_video(predictor, VideoSource(name="/dev/video63", format="v4l2"), tmp_path / "out.mp4")
    assert not list(tmp_path.iterdir())


def test_a_clip_that_breaks_off_leaves_no_half_clip(predictor: Predictor, tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "clip.mkv", list(range(0, 250, 5)))
    whole.write_bytes(whole.read_bytes()[:700])
    with pytest.raises(VideoError):
        label_video(predictor, VideoSource(name=str(whole)), tmp_path / "out" / "clip.mp4")
    assert not list((tmp_path / "out").glob("*"))


def test_without_pyav_the_error_names_the_extra(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with raises(LookupError, kind="missing-package", name="av", expected="pip install 'ddsm-zoo[video]'"):
        label_video(predictor, VideoSource(name="clip.mp4"), tmp_path / "out.mp4")


def test_a_turned_phones_clip_is_upright() -> None:
    from ddsm_zoo.inference.video import _upright

    class Turned:
        rotation, pts, time_base = 90, 3, Fraction(1, 30)

        def to_ndarray(self, format: str, width: int, height: int) -> np.ndarray:
            assert (format, width, height) == ("rgb24", 3, 2)
            return np.arange(6, dtype=np.uint8).reshape(2, 3, 1).repeat(3, 2)

    when, pixels = _upright(Turned(), (3, 2))
    assert when == Fraction(1, 10)
    assert pixels[..., 0].tolist() == [[2, 5], [1, 4], [0, 3]]


# --- frames that are lost ----------------------------------------------------------------------------------------

CONTAINERS = ("clip.mp4", "clip.mkv", "clip.ts", "clip.flv", "clip.webm", "clip.avi", "clip.3gp")


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_whole_file_has_lost_nothing(predictor: Predictor, tmp_path: Path, name: str) -> None:
    clip = label_video(predictor, VideoSource(name=str(write_noise(tmp_path / name, 20))), tmp_path / "out.mp4")
    assert (clip.frames, clip.lost, clip.problem) == (20, 0, None)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.avi"])
def test_a_file_cut_short_gives_the_frames_it_has_and_says_how_many_are_lost(
    predictor: Predictor, tmp_path: Path, name: str
) -> None:
    source = write_noise(tmp_path / name, options={"movflags": "faststart"} if name.endswith("mp4") else {})
    source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    clip = label_video(predictor, VideoSource(name=str(source)), tmp_path / "out.mp4")
    assert 10 < clip.frames == len(frames_of(tmp_path / "out.mp4")) < 25
    assert clip.frames + clip.lost == pytest.approx(40, abs=0 if name in ("clip.mp4", "clip.avi") else 2)
    assert f"{clip.lost} of {clip.frames + clip.lost} frames are lost" in clip.problem
    assert "cut short or damaged" in clip.to_dict()["problem"]
    part = label_video(predictor, VideoSource(name=str(source)), tmp_path / "part.mp4", frames=5)
    assert (part.frames, part.lost) == (5, 0)


@pytest.mark.parametrize(
    ("name", "zeros"), [("a.mp4", True), ("a.mp4", False), ("a.mkv", True), ("a.ts", True), ("a.avi", False)]
)
def test_a_damaged_stretch_is_skipped_and_its_frames_are_counted(
    predictor: Predictor, tmp_path: Path, name: str, zeros: bool
) -> None:
    source = write_noise(tmp_path / name)
    content = bytearray(source.read_bytes())
    middle, length = len(content) // 2, len(content) // 5
    content[middle : middle + length] = bytes(length) if zeros else np.random.default_rng(1).bytes(length)
    source.write_bytes(content)
    clip = label_video(predictor, VideoSource(name=str(source)), tmp_path / "out.mp4")
    frames = frames_of(tmp_path / "out.mp4")
    assert 20 <= clip.frames == len(frames) < 40
    assert clip.frames + clip.lost == pytest.approx(40, abs=0 if name in ("a.mp4", "a.avi") else 1)
    assert f"{clip.lost} of {clip.frames + clip.lost} frames are lost" in clip.problem
    times = [float(frame.time) for frame in frames]
    assert min(times) == 0
    assert max(times) > 3.4 or name == "a.avi"  # what comes after the damage has its time; AVI knows no times


def test_pauses_of_a_recording_are_no_damage(predictor: Predictor, tmp_path: Path) -> None:
    """Frames at irregular times, as screen recorders write them."""
    with av.open(str(tmp_path / "screen.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time in (0, 40, 300, 340, 1500, 1540, 1900, 4000):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    clip = label_video(predictor, VideoSource(name=str(tmp_path / "screen.mkv")), tmp_path / "out.mp4")
    assert (clip.frames, clip.lost, clip.problem) == (8, 0, None)


@pytest.mark.parametrize(
    ("shape", "size"), [((2, 1), (48, 128)), ((1, 2), (96, 64)), ((1, 1), (48, 64)), ((99, 1), (48, 64))]
)
def test_pixels_become_square(
    predictor: Predictor, tmp_path: Path, shape: tuple[int, int], size: tuple[int, int]
) -> None:
    source = write_noise(tmp_path / "tape.mp4", 2, sample_aspect_ratio=Fraction(*shape))
    clip = label_video(predictor, VideoSource(name=str(source)), tmp_path / "out.mp4")
    assert clip.size == size
    assert {(frame.height, frame.width) for frame in frames_of(tmp_path / "out.mp4")} == {size}


def test_names_that_are_not_utf8(predictor: Predictor, tmp_path: Path) -> None:
    source = write_noise(tmp_path / "x.mp4", 2).rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4"))
    target = source.with_name(f"{source.stem}_overlay.mp4")
    assert label_video(predictor, VideoSource(name=str(source)), target).frames == 2
    assert target.is_file()
