"""Predict many images and videos with prefetching and background writes. A bad file does not stop the others."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ddsm_zoo.data.facts import ImageFacts, image_facts
from ddsm_zoo.data.images import picture_box
from ddsm_zoo.errors import UserError
from ddsm_zoo.inference.inputs import Inputs, Source, find_inputs, local_file, stem_of
from ddsm_zoo.inference.predictor import Predictor, Segmentation
from ddsm_zoo.inference.video import Clip, VideoError, VideoSource, find_av, label_video
from ddsm_zoo.utils import Progress
from ddsm_zoo.utils.prefetch import passing_errors, prefetch

KINDS = ("ids.png", "color.png", "overlay.png", "overlay.mp4")  # ends of the names of results
THREADS = min(4, os.cpu_count() or 1)  # reader threads, and as many writer threads

NamedProgress = Callable[[str, int, int], None]
"""Called with the name of a task, the number of finished items and the total, 0 if unknown."""


@dataclass(frozen=True, kw_only=True)
class FileResult:
    """Result for one image, video or camera.

    After an error, all fields but ``source``, ``error`` and ``kind`` are empty.

    Attributes:
        source: Path, or camera-N.
        size: (H, W) in pixels.
        shares: Fraction of the pixels by class name, 0 to 1.
        confidence: Mean probability of the predicted classes, 0 to 1.
        files: Paths by kind: ids, color and overlay for an image, overlay for a video.
        clip: Summary of a video.
        facts: Facts of an image file that its pixels do not show, None for a video.
        error: Error message in one line.
        kind: Kind of the error or of the video's problem, see `ddsm_zoo.errors.KINDS`. None if it has none.
    """

    source: str
    size: tuple[int, int] | None = None
    shares: Mapping[str, float] = field(default_factory=dict)
    confidence: float | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    clip: Clip | None = None
    facts: ImageFacts | None = None
    error: str | None = None
    kind: str | None = None

    @property
    def problem(self) -> str | None:
        """Line about a source that gave nothing, or about lost frames of a video. None if all went well."""
        return self.clip.problem if self.error is None and self.clip is not None else self.error

    @classmethod
    def failed(cls, source: Source, error: Exception) -> FileResult:
        """Build the result for an error."""
        # the text alone: a kept exception would keep the image in its traceback
        return cls(
            source=str(source),
            error=" ".join(str(error).split()),
            kind=error.kind if isinstance(error, UserError) else None,
        )

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


def predict_folder(
    predictor: Predictor,
    sources: Source | Iterable[Source] | Inputs,
    out_dir: Source,
    *,
    camera: int | None = None,
    frames: int | None = None,
    progress: NamedProgress | None = None,
) -> list[FileResult]:
    """Label images and videos, or all images of folders, patterns and lists, and write the results into one folder.

    Writes ``NAME_ids.png``, ``NAME_color.png`` and ``NAME_overlay.png`` for each image, as `Segmentation.save` does,
    and ``NAME_overlay.mp4`` for each video. Equal names are numbered. The next images are prefetched and the last ones
    written while the model runs. With tiles, images are processed one by one, because several might not fit into
    memory.

    Args:
        predictor: Model that labels the images.
        sources: Images, videos, folders, patterns, lists and URLs, as `find_inputs` takes them, or what it returned.
        out_dir: Target folder. It is created if missing. Results that are already there are replaced.
        camera: Number of a camera to label last, until the first Ctrl-C.
        frames: Maximum number of frames of each video and of the camera.
        progress: Called as ``progress(name, done, total)`` for "images", for the "tiles" of one image, and for the
            frames of a video under its path. A total of 0 is unknown.

    Returns:
        One result for each input. Sources without images come first, then images, then videos, each in the order of the
            sources. An input that cannot be read, labeled or written has its ``error`` there and does not stop the
            others.

    Raises:
        LookupError: There are videos and the package av is not installed.
    """
    out_dir = Path(out_dir)
    inputs = sources if isinstance(sources, Inputs) else find_inputs(sources, out_dir)
    videos = {str(source): VideoSource(name=str(source)) for source in inputs.videos}
    if camera is not None:
        videos[f"camera-{camera}"] = VideoSource.camera(camera)
    if videos:
        find_av()
    stems = result_stems(inputs, camera)
    return [
        *(FileResult.failed(source, error) for source, error in inputs.failures),
        *_predict_images(predictor, inputs.images, out_dir, stems, progress),
        *_predict_videos(predictor, videos, frames, out_dir, stems, progress),
    ]


def result_stems(inputs: Inputs, camera: int | None = None) -> dict[str, str]:
    """Return the start of the names of the results by source, numbered where sources have the same name."""
    taken: set[str] = set()
    names = [(str(source), stem_of(source)) for source in (*inputs.images, *inputs.videos)]
    names += [] if camera is None else [(f"camera-{camera}", f"camera-{camera}")]
    return {source: free_stem(stem, taken) for source, stem in names}


def free_folder(folder: Path, stems: Iterable[str]) -> Path:
    """Return ``folder``, numbered if it has results of any of these names already: predictions, predictions-2, ..."""
    names = [f"{stem}_{kind}" for stem in stems for kind in KINDS]
    whole = folder if folder.name not in ("", "..") else folder.resolve()  # "." has no name
    candidate, number = folder, 1
    while candidate.is_dir() and not {file.name for file in candidate.iterdir()}.isdisjoint(names):
        number += 1
        candidate = whole.with_name(f"{whole.name}-{number}")
    return candidate


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


def _predict_images(
    predictor: Predictor,
    images: Sequence[Source],
    out_dir: Path,
    stems: Mapping[str, str],
    progress: NamedProgress | None,
) -> Iterator[FileResult]:
    def read(source: Source, _: None) -> tuple[Image.Image, ImageFacts]:
        with local_file(source) as path:
            image, facts = predictor.read(path), image_facts(path, bits=predictor.bits)
        if predictor.trim or predictor.tile is not None:  # an image for tiles may be too large for another copy
            return image, facts
        return image, dataclasses.replace(facts, border=picture_box(image) is not None)

    def label(_: Source, opened: tuple[Image.Image, ImageFacts]) -> tuple[Segmentation, ImageFacts]:
        image, facts = opened
        return predictor(image, _task(progress, "tiles")), facts

    def write(source: Source, labeled: tuple[Segmentation, ImageFacts]) -> FileResult:
        result, facts = labeled
        height, width = result.mask.shape
        return FileResult(
            source=str(source),
            size=(height, width),
            shares=result.shares(),
            confidence=result.confidence,
            files=result.save(out_dir, stems[str(source)]),
            facts=facts,
        )

    ahead = 0 if predictor.tile else THREADS
    pictures = prefetch(passing_errors(read), ((image, None) for image in images), THREADS, ahead)
    results = prefetch(passing_errors(write), map(passing_errors(label), pictures), THREADS, ahead)
    show = _task(progress, "images")
    if show and images:
        show(0, len(images))
    for done, (source, result) in enumerate(results, 1):
        yield FileResult.failed(source, result) if isinstance(result, Exception) else result
        if show:
            show(done, len(images))


def _predict_videos(
    predictor: Predictor,
    videos: Mapping[str, VideoSource],
    frames: int | None,
    out_dir: Path,
    stems: Mapping[str, str],
    progress: NamedProgress | None,
) -> Iterator[FileResult]:
    for name, source in videos.items():
        target = out_dir / f"{stems[name]}_overlay.mp4"
        try:
            clip = label_video(predictor, source, target, frames=frames, progress=_task(progress, name))
        except (ValueError, OSError) as error:
            yield FileResult.failed(name, error)
        else:
            files = {"overlay": target}
            shares, confidence = clip.shares, clip.confidence
            yield FileResult(
                source=name,
                size=clip.size,
                shares=shares,
                confidence=confidence,
                files=files,
                clip=clip,
                kind=VideoError.kind if clip.problem else None,
            )


def _task(progress: NamedProgress | None, name: str) -> Progress | None:
    """Bind ``progress`` to the task of that name."""
    if progress is None:
        return None
    return lambda done, total: progress(name, done, total)
