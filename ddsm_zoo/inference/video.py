"""Label video files and cameras frame by frame and write a clip with the overlay."""

from __future__ import annotations

import contextlib
import functools
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

from ddsm_zoo.errors import MissingFileError, PackageError, UserError
from ddsm_zoo.inference.predictor import Predictor, Segmentation
from ddsm_zoo.utils import Progress
from ddsm_zoo.utils.files import atomic_path
from ddsm_zoo.utils.prefetch import prefetch
from ddsm_zoo.utils.signals import interruptible

VIDEO_SUFFIXES = frozenset(
    {
        ".3g2", ".3gp", ".asf", ".avi", ".dv", ".f4v", ".flv", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv",
        ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".qt", ".ts", ".vob", ".webm", ".wmv",
    }
)  # fmt: skip

AHEAD = 4  # frames to prefetch, and as many that wait to be encoded
RATE = 25  # frames per second if the source does not say
GAP = 3  # missing frames in a row that are reported; undamaged recordings have shorter gaps
TIMED = ("matroska,webm", "flv")  # containers whose header has a duration but no number of frames
MOST_OBLONG = 4  # largest pixel aspect ratio to believe, either way


class VideoError(UserError, ValueError):
    """Raised for a file or device that cannot be read as a video."""

    kind = "video"


@dataclass(frozen=True, kw_only=True)
class VideoSource:
    """Input that FFmpeg opens.

    Attributes:
        name: Path or URL of a file, or name of a device.
        format: FFmpeg format of a device. None for a file. A device gives frames until you stop it.
    """

    name: str
    format: str | None = None

    @property
    def live(self) -> bool:
        """True for a device, which has no end."""
        return self.format is not None

    @property
    def is_file(self) -> bool:
        """True for a local file."""
        return not self.live and "://" not in self.name

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
    """Summary of a labeled video.

    Attributes:
        frames: Number of frames.
        size: Frame size (H, W) in pixels, square ones.
        seconds: Processing time.
        shares: Mean fraction of the pixels by class name, 0 to 1.
        confidence: Mean probability of the predicted classes, 0 to 1.
        lost: Number of frames that could not be decoded, if the source says how many it has.
        problem: Line about lost and damaged frames, None if there are none.
    """

    frames: int
    size: tuple[int, int]
    seconds: float
    shares: dict[str, float]
    confidence: float | None
    lost: int = 0
    problem: str | None = None

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

    Frames are decoded, labeled and encoded in parallel. Frames with non-square pixels are stretched
    to square ones. A damaged stretch is skipped, and the clip has the frames before and after it.

    Args:
        predictor: Model that labels the frames.
        source: File or device. A device gives frames until the first Ctrl-C.
        target: Path of the clip.
        frames: Maximum number of frames.
        progress: Called as ``progress(done, total)`` after each frame. A total of 0 is unknown.

    Returns:
        Number and size of the frames, processing time, mean shares of the classes, and the lost frames.

    Raises:
        LookupError: The package av is not installed.
        FileNotFoundError: The file does not exist.
        VideoError: The source cannot be read.
        OutputError: The clip cannot be written.
    """
    began = time.perf_counter()
    masks, certain = 0, 0.0
    shares = dict.fromkeys(predictor.labels.names, 0.0)
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(_Reader.open(source))
        stop = stack.enter_context(interruptible()) if source.live else threading.Event()
        path = stack.enter_context(atomic_path(target))
        writer = stack.enter_context(contextlib.closing(_Writer(path, reader.rate)))
        upright = functools.partial(_upright, size=reader.size)
        pictures = prefetch(upright, itertools.islice(reader.frames(stop), frames), 1, AHEAD)
        labeled = ((place, predictor(picture)) for place, picture in pictures)
        for result in prefetch(writer.write, labeled, 1, AHEAD):
            masks += 1
            for name, share in result.shares().items():
                shares[name] += share
            certain += result.confidence or 0.0
            if progress:
                progress(masks, min(reader.total, frames or reader.total))
        if not masks:
            raise VideoError(f"{source.name} has no frames that can be decoded", path=source.name)
        size, lost, problem = result.mask.shape, reader.lost(), reader.problem()
    means = {name: total / masks for name, total in shares.items()}
    return Clip(
        frames=masks,
        size=(size[0], size[1]),
        seconds=time.perf_counter() - began,
        shares=means,
        confidence=certain / masks,
        lost=lost,
        problem=problem,
    )


class _Reader:
    """Frames and metadata of a source, and a count of the frames that are lost to damage."""

    def __init__(self, container: Any, source: VideoSource) -> None:
        self.container = container
        self.source = source
        self.stream = container.streams.video[0]
        self.stream.thread_type = "AUTO"
        self.rate = Fraction(self.stream.average_rate or RATE)
        self.total = int(self.stream.frames)
        self.size = _square_pixels(self.stream)
        self.damaged = 0  # frames that were decoded with errors
        self._times: list[float] = []  # presentation times of the decoded frames
        self._packets = self._discarded = self._errors = 0
        self._last = 0.0  # end of all streams, sound included
        self._ended = False
        self._failure = ""

    @classmethod
    @contextlib.contextmanager
    def open(cls, source: VideoSource) -> Iterator[_Reader]:
        av = find_av()
        if source.is_file and not Path(source.name).is_file():
            raise MissingFileError(f"no video file at {source.name}", path=source.name)
        with _readable(source):
            container = av.open(source.name, format=source.format)
        with container:
            if not container.streams.video:
                raise VideoError(f"{source.name} has no pictures, expected a video", path=source.name)
            size = (container.streams.video[0].width, container.streams.video[0].height)
            if 1 in size:  # the clip's color planes could not halve it
                raise VideoError(
                    f"{source.name} has frames of {size[0]} x {size[1]} pixels, expected at least 2 x 2",
                    path=source.name,
                    got=size,
                )
            yield cls(container, source)

    def frames(self, stop: threading.Event) -> Iterator[Any]:
        """Yield the frames that can be decoded, until the source ends, breaks off or ``stop`` is set.

        Raises VideoError for a source that breaks off before its first frame.
        """
        error = find_av().error.FFmpegError
        packets = self.container.demux()
        while not self._ended:
            try:
                packet = next(packets, None)
            except error as failure:
                packet, self._failure = None, failure.strerror
            self._ended = packet is None
            for frame in self._decode(packet):
                if stop.is_set():
                    return
                yield frame
        if self._failure and not self._times:
            raise VideoError(f"{self.source.name} cannot be read as a video: {self._failure}", path=self.source.name)

    def _decode(self, packet: Any) -> Iterator[Any]:
        if packet is not None:
            if packet.pts is not None:
                self._last = max(self._last, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream.index != self.stream.index:
                return
            self._packets += packet.size > 0
            self._discarded += packet.is_discard
        try:
            for frame in self.stream.decode(packet):
                self.damaged += frame.is_corrupt
                self._times.append(float(frame.time or 0))
                yield frame
        except find_av().error.EOFError:  # the decoder is already drained
            pass
        except find_av().error.FFmpegError as failure:
            self._errors += 1
            self._failure = failure.strerror

    def lost(self) -> int:
        """Return the number of frames lost to damage, by the count in the header or estimated from the frame times."""
        if not self._ended or self.source.live:
            return self._errors
        if self.total:  # without any sign of damage, the header may count frames that are not meant to be shown
            damage = self._errors or self.damaged or self._packets < self.total
            return max(0, self.total - self._discarded - len(self._times)) if damage else 0
        return max(self._errors, self._gaps() + self._cut())

    def problem(self) -> str | None:
        """Describe what is missing from the source, None if nothing is."""
        lost, shown = self.lost(), len(self._times)
        parts = [f"{lost} of {shown + lost} frames are lost"] if lost else []
        parts += [f"{self.damaged} of the {shown} that can be decoded are damaged"] if self.damaged else []
        if not parts:
            return f"{self.source.name}: {self._failure}" if self._failure else None
        reason = "the source broke off" if self.source.live else "the file is cut short or damaged"
        return f"{self.source.name}: {' and '.join(parts)}: {reason}"

    def _gaps(self) -> int:
        """Count the frames missing between others, where nearly all frames have the same distance."""
        steps = np.diff(np.sort(self._times))
        usual = float(np.median(steps)) if len(steps) else 0.0
        if usual <= 0 or np.mean(np.abs(steps / usual - 1) < 0.1) < 0.9:
            return 0
        missing = np.rint(steps / usual).astype(int) - 1
        return int(missing[missing >= GAP].sum())

    def _cut(self) -> int:
        """Estimate the frames missing at the end, where the header says how long the source is."""
        duration = (self.container.duration or 0) / 1e6
        if self.container.format.name not in TIMED or duration - self._last < max(1.0, 0.02 * duration):
            return 0
        return max(0, round((duration - max(self._times, default=0.0)) * self.rate) - 1)


def _square_pixels(stream: Any) -> tuple[int, int]:
    """Return width and height of frames with square pixels: the shorter direction of other pixels is enlarged."""
    shape = Fraction(stream.sample_aspect_ratio or 1)
    if not 1 / MOST_OBLONG <= shape <= MOST_OBLONG:  # wrong metadata
        shape = Fraction(1)
    return round(stream.width * max(1, shape)), round(stream.height / min(1, shape))


@contextlib.contextmanager
def _readable(source: VideoSource) -> Iterator[None]:
    try:
        yield
    except find_av().error.FFmpegError as error:
        raise VideoError(f"{source.name} cannot be read as a video: {error.strerror}", path=source.name) from error


def _upright(frame: Any, size: tuple[int, int]) -> tuple[Fraction | None, npt.NDArray[np.uint8]]:
    """Return the time of a frame in seconds and its pixels (H, W, 3), rotated as the video's metadata says.

    Before the rotation, the frame is resized to ``size`` (W, H), if it has another.
    """
    pixels = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
    turned = np.rot90(pixels, round(frame.rotation / 90))
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
        # the color planes have half the resolution, so an odd last row or column is dropped
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
        raise PackageError.needed("videos need", "av", "video") from error
    return av
