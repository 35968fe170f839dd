"""Label video files and cameras frame by frame and write a clip with the overlay."""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ddsm_zoo.inference.predictor import Predictor, Segmentation
from ddsm_zoo.utils import Progress
from ddsm_zoo.utils.files import atomic_path
from ddsm_zoo.utils.prefetch import prefetch
from ddsm_zoo.utils.signals import interruptible

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".webm", ".wmv"})

AHEAD = 4  # frames to prefetch, and as many that wait to be encoded
RATE = 25  # frames per second if the source does not say


class VideoError(ValueError):
    """Raised for a file or device that cannot be read as a video."""


@dataclass(frozen=True, kw_only=True)
class VideoSource:
    """Input that FFmpeg opens.

    Attributes:
        name: Path of a file, or name of a device.
        format: FFmpeg format of a device. None for a file. A device gives frames until you stop it.
    """

    name: str
    format: str | None = None

    @classmethod
    def camera(cls, number: int) -> VideoSource:
        """Return the camera of that number, 0 for the first, under its name on this operating system.

        Args:
            number: Number of the camera, from 0.
        """
        if sys.platform == "darwin":
            return cls(name=str(number), format="avfoundation")
        if sys.platform == "win32":
            return cls(name=str(number), format="vfwcap")
        return cls(name=f"/dev/video{number}", format="v4l2")


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Summary of a labelled video.

    Attributes:
        frames: Number of frames.
        size: Frame size (H, W) in pixels.
        seconds: Processing time.
        shares: Mean fraction of the pixels by class name, 0 to 1.
        confidence: Mean probability of the predicted classes, 0 to 1.
    """

    frames: int
    size: tuple[int, int]
    seconds: float
    shares: dict[str, float]
    confidence: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, with ``frames_per_second``."""
        return {**asdict(self), "size": list(self.size), "frames_per_second": self.frames / self.seconds}


def label_video(
    predictor: Predictor,
    source: VideoSource,
    target: Path,
    *,
    frames: int | None = None,
    progress: Progress | None = None,
) -> Clip:
    """Label a video and write it as an H.264 clip with the overlay, without sound.

    Frames are decoded, labelled and encoded in parallel.

    Args:
        predictor: Model that labels the frames.
        source: File or device. A device gives frames until the first Ctrl-C.
        target: Path of the clip.
        frames: Maximum number of frames.
        progress: Called as ``progress(done, total)`` after each frame. A total of 0 is unknown.

    Returns:
        Number and size of the frames, processing time and mean shares of the classes.

    Raises:
        LookupError: The package av is not installed.
        FileNotFoundError: The file does not exist.
        VideoError: The source cannot be read.
        OutputError: The clip cannot be written.
    """
    began = time.perf_counter()
    masks, certain = 0, 0.0
    shares = dict.fromkeys(predictor.labels.names, 0.0)
    live = source.format is not None
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(_Reader.open(source))
        stop = stack.enter_context(interruptible()) if live else threading.Event()
        path = stack.enter_context(atomic_path(target))
        writer = stack.enter_context(contextlib.closing(_Writer(path, reader.rate)))
        pictures = prefetch(_upright, itertools.islice(reader.frames(stop), frames), 1, AHEAD)
        labeled = ((place, predictor(picture)) for place, picture in pictures)
        for result in prefetch(writer.write, labeled, 1, AHEAD):
            masks += 1
            for name, share in result.shares().items():
                shares[name] += share
            certain += result.confidence or 0.0
            if progress:
                progress(masks, min(reader.total, frames or reader.total))
        if not masks:
            raise VideoError(f"{source.name} has no frames that can be decoded")
        size = result.mask.shape
    means = {name: total / masks for name, total in shares.items()}
    return Clip(
        frames=masks,
        size=(size[0], size[1]),
        seconds=time.perf_counter() - began,
        shares=means,
        confidence=certain / masks,
    )


class _Reader:
    """Frames and metadata of a source."""

    def __init__(self, container: Any, source: VideoSource) -> None:
        self.container = container
        self.source = source
        self.stream = container.streams.video[0]
        self.stream.thread_type = "AUTO"
        self.rate = Fraction(self.stream.average_rate or RATE)
        self.total = int(self.stream.frames)

    @classmethod
    @contextlib.contextmanager
    def open(cls, source: VideoSource) -> Iterator[_Reader]:
        av = find_av()
        if source.format is None and not Path(source.name).is_file():
            raise FileNotFoundError(f"no video file at {source.name}")
        with _readable(source):
            container = av.open(source.name, format=source.format)
        with container:
            if not container.streams.video:
                raise VideoError(f"{source.name} has no pictures, expected a video")
            size = (container.streams.video[0].width, container.streams.video[0].height)
            if 1 in size:  # the clip's colour planes could not halve it
                raise VideoError(f"{source.name} has frames of {size[0]} x {size[1]} pixels, expected at least 2 x 2")
            yield cls(container, source)

    def frames(self, stop: threading.Event) -> Iterator[Any]:
        with _readable(self.source):
            for frame in self.container.decode(self.stream):
                if stop.is_set():
                    return
                yield frame


@contextlib.contextmanager
def _readable(source: VideoSource) -> Iterator[None]:
    try:
        yield
    except find_av().error.FFmpegError as error:
        raise VideoError(f"{source.name} cannot be read as a video: {error.strerror}") from error


def _upright(frame: Any) -> tuple[Fraction | None, npt.NDArray[np.uint8]]:
    """Return the time of a frame in seconds and its pixels (H, W, 3), rotated as the video's metadata says."""
    turned = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
    when = None if frame.pts is None else frame.pts * frame.time_base
    return when, np.ascontiguousarray(turned)


class _Writer:
    """H.264 file. It is opened at the first frame, which gives the size."""

    TICKS = 90_000  # per second, MPEG's own clock

    def __init__(self, path: Path, rate: Fraction) -> None:
        self.container = find_av().open(str(path), "w")
        self.rate = rate
        self.stream: Any = None
        self.first: Fraction | None = None
        self.last = -1

    def write(self, labeled: tuple[Fraction | None, Segmentation]) -> Segmentation:
        when, result = labeled
        picture = np.asarray(result.overlay(legend=False))
        # the colour planes have half the resolution, so an odd last row or column is dropped
        picture = picture[: len(picture) // 2 * 2, : picture.shape[1] // 2 * 2]
        if self.stream is None:
            self.stream = self.container.add_stream("libx264", rate=self.rate, options={"preset": "veryfast"})
            self.stream.height, self.stream.width = picture.shape[:2]
            self.stream.pix_fmt = "yuv420p"
            self.stream.codec_context.time_base = Fraction(1, self.TICKS)
            self.first = when
        frame = find_av().VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame.time_base = Fraction(1, self.TICKS)
        step = round(self.TICKS / self.rate)
        if when is None or self.first is None:
            self.last += step
        else:
            self.last = max(self.last + 1, round((when - self.first) * self.TICKS))
        frame.pts = self.last
        self.container.mux(self.stream.encode(frame))
        return result

    def close(self) -> None:
        if self.stream is not None:
            self.container.mux(self.stream.encode(None))
        self.container.close()


def find_av() -> Any:
    """Return the package av. Raises LookupError if it is not installed."""
    try:
        import av
    except ModuleNotFoundError as error:
        raise LookupError("videos need the package av: pip install 'ddsm-zoo[video]'") from error
    return av
