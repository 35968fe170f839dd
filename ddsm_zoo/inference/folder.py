"""Predict many images and videos: reads ahead, writes behind, and goes on after a bad file."""

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

WRITTEN = ("_ids.png", "_colour.png", "_overlay.png")  # names of results, which are not labelled again
THREADS = min(4, os.cpu_count() or 1)  # that read, and as many that write

Source = str | os.PathLike[str]

NamedProgress = Callable[[str, int, int], None]
"""Called with the name of a task, the number of its items that are done and the number of all, 0 if unknown."""


@dataclass(frozen=True, kw_only=True)
class FileResult:
    """One image, video or camera and the files written for it, or the ``error`` in one line.

    ``source`` is the path, or camera-N. ``size`` is (H, W), ``shares`` the fraction of the pixels by class, and
    ``files`` the paths by kind: ids, colour and overlay for an image, overlay for a video, which also has a ``clip``.
    After an error all of these are empty.
    """

    source: str
    size: tuple[int, int] | None = None
    shares: Mapping[str, float] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    clip: Clip | None = None
    error: str | None = None

    @classmethod
    def failed(cls, source: Source, error: Exception) -> FileResult:
        """The result where an error ended it."""
        # the text alone: a kept exception would keep the image in its traceback
        return cls(source=str(source), error=" ".join(str(error).split()))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, under the key "image" or "video" the source."""
        if self.error is not None:
            return {"image": self.source, "error": self.error}
        files = {kind: str(path) for kind, path in self.files.items()}
        if self.clip is not None:
            return {"video": self.source, **self.clip.to_dict(), "files": files}
        return {"image": self.source, "size": list(self.size or ()), "shares": dict(self.shares), "files": files}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Files to predict, each of them once, and a failure for each folder without images."""

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
    """Label all images of a folder, or any images and videos, and write the results into one folder.

    Of each image this writes ``NAME_ids.png``, ``NAME_colour.png`` and ``NAME_overlay.png``, as `Segmentation.save`
    does, and of each video ``NAME_overlay.mp4``. Equal names are numbered. The next images are read and the last ones
    written while the model works. With tiles, images go one by one, because several might not fit into memory.

    Args:
        predictor: the model.
        sources: images, videos and folders, as `find_inputs` takes them.
        out_dir: created if need be. Results that are already there are replaced.
        camera: the number of a camera that is labelled last, until the first Ctrl-C.
        frames: at most so many of each video and of the camera.
        progress: called as ``progress(name, done, total)`` for "images", for the "tiles" of one image, and for the
            frames of a video under its path. A total of 0 is unknown.

    Returns:
        One record for each input: folders without images, then images, then videos, each in the order of the sources.
        One that cannot be read, labelled or written has its ``error`` there and does not stop the others.

    Raises:
        LookupError: there are videos and the package av is missing.
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
        sources: files, which are taken as they are, and folders, whose images and whose subfolders' images are taken.
        out_dir: the folder of the results. Folders are searched without it and without results of earlier calls.
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
    """``stem``, numbered where another input has it already; case does not tell names apart on every file system."""
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
        files = result.save(out_dir, stem)
        return FileResult(source=str(path), size=(height, width), shares=result.shares(), files=files)

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
            yield FileResult(source=name, size=clip.size, shares=clip.shares, files={"overlay": target}, clip=clip)


def _task(progress: NamedProgress | None, name: str) -> Progress | None:
    """``progress`` for the task of that name."""
    if progress is None:
        return None
    return lambda done, total: progress(name, done, total)
