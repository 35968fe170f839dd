"""Predict many images and videos with prefetching and background writes. A bad file does not stop the others."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ddsm_zoo.data.images import SUFFIXES
from ddsm_zoo.inference.predictor import Predictor, Segmentation
from ddsm_zoo.inference.video import VIDEO_SUFFIXES, Clip, VideoSource, find_av, label_video
from ddsm_zoo.utils import Progress
from ddsm_zoo.utils.prefetch import passing_errors, prefetch

WRITTEN = ("_ids.png", "_color.png", "_overlay.png", "_colour.png")  # names of results, which are not labelled again
THREADS = min(4, os.cpu_count() or 1)  # reader threads, and as many writer threads

Source = str | os.PathLike[str]

NamedProgress = Callable[[str, int, int], None]
"""Called with the name of a task, the number of finished items and the total, 0 if unknown."""


@dataclass(frozen=True, kw_only=True)
class FileResult:
    """Result for one image, video or camera.

    After an error, all fields but ``source`` and ``error`` are empty.

    Attributes:
        source: Path, or camera-N.
        size: (H, W) in pixels.
        shares: Fraction of the pixels by class name, 0 to 1.
        confidence: Mean probability of the predicted classes, 0 to 1.
        files: Paths by kind: ids, color and overlay for an image, overlay for a video.
        clip: Summary of a video.
        error: Error message in one line.
    """

    source: str
    size: tuple[int, int] | None = None
    shares: Mapping[str, float] = field(default_factory=dict)
    confidence: float | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    clip: Clip | None = None
    error: str | None = None

    @classmethod
    def failed(cls, source: Source, error: Exception) -> FileResult:
        """Build the result for an error."""
        # the text alone: a kept exception would keep the image in its traceback
        return cls(source=str(source), error=" ".join(str(error).split()))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data with the source under the key "image" or "video"."""
        if self.error is not None:
            return {"image": self.source, "error": self.error}
        files = {kind: str(path) for kind, path in self.files.items()}
        if self.clip is not None:
            return {"video": self.source, **self.clip.to_dict(), "files": files}
        size = list(self.size or ())
        shares, confidence = dict(self.shares), self.confidence
        return {"image": self.source, "size": size, "shares": shares, "confidence": confidence, "files": files}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Files to predict without duplicates, and a failure for each folder without images."""

    images: tuple[Path, ...]
    videos: tuple[Path, ...]
    failures: tuple[FileResult, ...]


def predict_folder(
    predictor: Predictor,
    sources: Source | Iterable[Source],
    out_dir: Source,
    *,
    camera: int | None = None,
    frames: int | None = None,
    progress: NamedProgress | None = None,
) -> list[FileResult]:
    """Label images and videos, or all images of folders, and write the results into one folder.

    Writes ``NAME_ids.png``, ``NAME_color.png`` and ``NAME_overlay.png`` for each image, as `Segmentation.save` does,
    and ``NAME_overlay.mp4`` for each video. Equal names are numbered. The next images are prefetched and the last ones
    written while the model runs. With tiles, images are processed one by one, because several might not fit into
    memory.

    Args:
        predictor: Model that labels the images.
        sources: Images, videos and folders, as `find_inputs` takes them.
        out_dir: Target folder. It is created if missing. Results that are already there are replaced.
        camera: Number of a camera to label last, until the first Ctrl-C.
        frames: Maximum number of frames of each video and of the camera.
        progress: Called as ``progress(name, done, total)`` for "images", for the "tiles" of one image, and for the
            frames of a video under its path. A total of 0 is unknown.

    Returns:
        One result for each input. Folders without images come first, then images, then videos, each in the order of the
            sources. An input that cannot be read, labelled or written has its ``error`` there and does not stop the
            others.

    Raises:
        LookupError: There are videos and the package av is not installed.
    """
    out_dir = Path(out_dir)
    inputs = find_inputs(sources, out_dir)
    videos = {str(path): VideoSource(name=str(path)) for path in inputs.videos}
    if camera is not None:
        videos[f"camera-{camera}"] = VideoSource.camera(camera)
    if videos:
        find_av()
    taken: set[str] = set()
    return [
        *inputs.failures,
        *_predict_images(predictor, inputs.images, out_dir, taken, progress),
        *_predict_videos(predictor, videos, frames, out_dir, taken, progress),
    ]


def find_inputs(sources: Source | Iterable[Source], out_dir: Source) -> Inputs:
    """Find the files to predict.

    Args:
        sources: Files, which are taken as they are, and folders. Of a folder, the images in it and in its subfolders
            are taken.
        out_dir: Folder of the results. It is skipped when folders are searched, and so are results of earlier calls.

    Returns:
        Images, videos and a failure for each folder without images.
    """
    paths = [Path(source) for source in ([sources] if isinstance(sources, (str, os.PathLike)) else sources)]
    files: list[Path] = []
    failures: list[FileResult] = []
    for path in paths:
        found = list(_images_in(path, Path(out_dir))) if path.is_dir() else [path]
        if not found:
            error = ValueError(f"no images in the folder {path}, expected {', '.join(sorted(SUFFIXES))}")
            failures.append(FileResult.failed(path, error))
        files += found
    unique = {file.absolute(): file for file in files}.values()
    return Inputs(
        images=tuple(file for file in unique if file.suffix.lower() not in VIDEO_SUFFIXES),
        videos=tuple(file for file in unique if file.suffix.lower() in VIDEO_SUFFIXES),
        failures=tuple(failures),
    )


def free_stem(stem: str, taken: set[str]) -> str:
    """Return ``stem``, numbered if another input has it already.

    Names are compared without case, because some file systems do not distinguish it.
    """
    name, number = stem, 1
    while name.casefold() in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(name.casefold())
    return name


def _images_in(folder: Path, out_dir: Path) -> Iterator[Path]:
    inner = (file for file in folder.glob("*/*") if file.parent.resolve() != out_dir.resolve())
    for file in sorted([*folder.glob("*"), *inner]):
        if file.suffix.lower() in SUFFIXES and file.is_file() and not file.name.endswith(WRITTEN):
            yield file


def _predict_images(
    predictor: Predictor, images: Sequence[Path], out_dir: Path, taken: set[str], progress: NamedProgress | None
) -> Iterator[FileResult]:
    def read(path: Path, _: None) -> Image.Image:
        return predictor.read(path)

    def label(path: Path, image: Image.Image) -> tuple[str, Segmentation]:
        result = predictor(image, _task(progress, "tiles"))
        return free_stem(path.stem, taken), result

    def write(path: Path, labeled: tuple[str, Segmentation]) -> FileResult:
        stem, result = labeled
        height, width = result.mask.shape
        return FileResult(
            source=str(path),
            size=(height, width),
            shares=result.shares(),
            confidence=result.confidence,
            files=result.save(out_dir, stem),
        )

    ahead = 0 if predictor.tile else THREADS
    pictures = prefetch(passing_errors(read), ((image, None) for image in images), THREADS, ahead)
    results = prefetch(passing_errors(write), map(passing_errors(label), pictures), THREADS, ahead)
    show = _task(progress, "images")
    if show and images:
        show(0, len(images))
    for done, (path, result) in enumerate(results, 1):
        yield FileResult.failed(path, result) if isinstance(result, Exception) else result
        if show:
            show(done, len(images))


def _predict_videos(
    predictor: Predictor,
    videos: Mapping[str, VideoSource],
    frames: int | None,
    out_dir: Path,
    taken: set[str],
    progress: NamedProgress | None,
) -> Iterator[FileResult]:
    for name, source in videos.items():
        target = out_dir / f"{free_stem(Path(name).stem, taken)}_overlay.mp4"
        try:
            clip = label_video(predictor, source, target, frames=frames, progress=_task(progress, name))
        except (ValueError, OSError) as error:
            yield FileResult.failed(name, error)
        else:
            files = {"overlay": target}
            shares, confidence = clip.shares, clip.confidence
            yield FileResult(source=name, size=clip.size, shares=shares, confidence=confidence, files=files, clip=clip)


def _task(progress: NamedProgress | None, name: str) -> Progress | None:
    """Bind ``progress`` to the task of that name."""
    if progress is None:
        return None
    return lambda done, total: progress(name, done, total)
