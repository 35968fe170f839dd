"""``predict``: from images, videos and cameras to masks and pictures."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from ddsm_zoo.cli.app import DeviceOption, JsonOption, ModelOption, app
from ddsm_zoo.cli.console import (
    check_folder,
    check_output,
    one_line,
    print_error,
    print_lines,
    print_shares,
    progress_bar,
    report,
)

if TYPE_CHECKING:
    from PIL import Image
    from rich.progress import Progress

    from ddsm_zoo.inference.modes import Precision
    from ddsm_zoo.inference.predictor import Predictor, Segmentation
    from ddsm_zoo.inference.video import VideoSource

DEFAULT_MODEL = "uper_ddsm_lite0_camvid"
VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".webm", ".wmv"})
WRITTEN = ("_ids.png", "_colour.png", "_overlay.png")
UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
THREADS = min(4, os.cpu_count() or 1)  # that read, and as many that write


@app.command()
def predict(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Images, videos, or folders of images and of folders of images.")
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.", metavar="DIR")] = Path(
        "predictions"
    ),
    tile: Annotated[
        str | None, typer.Option(help="Cut pictures larger than N x N into tiles; auto: as large as fit.", metavar="N")
    ] = None,
    memory: Annotated[
        str, typer.Option(help="What --tile may use, pictures included: the larger they may be.", metavar="SIZE")
    ] = "4GiB",
    precision: Annotated[str, typer.Option(help="fp32, or bf16 for half the memory.", metavar="NAME")] = "fp32",
    camera: Annotated[
        int | None, typer.Option(min=0, help="Label what camera N sees, until Ctrl-C.", metavar="N")
    ] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="At most so many of a video or camera.")] = None,
    device: DeviceOption = None,
    json: JsonOption = None,
) -> None:
    """Label images: writes NAME_ids.png (class ids), NAME_colour.png and NAME_overlay.png for each of them.

    Of a video or camera it writes NAME_overlay.mp4. docs/large-images.md has more on --tile and --memory.

    ddsm-zoo predict street.jpg

    ddsm-zoo predict holiday/ drive.mp4 -o masks --model uper_ddsm_lite0_camvid --json -

    ddsm-zoo predict aerial.tif --tile auto --memory 4GiB
    """
    if not paths and camera is None:
        raise typer.BadParameter("expected images, videos or folders of images, or --camera N")
    side, limit = parse_tile(tile), parse_memory(memory)
    check_folder(out)
    check_output(json)
    failures: list[dict[str, str]] = []
    found = [file for path in paths or [] for file in find_images(path, out, failures)]
    unique = list({file.absolute(): file for file in found}.values())
    images = [file for file in unique if file.suffix.lower() not in VIDEO_SUFFIXES]
    videos = [file for file in unique if file.suffix.lower() in VIDEO_SUFFIXES]
    done: list[dict[str, Any]] = []
    clips: list[dict[str, Any]] = []
    if unique or camera is not None:
        from ddsm_zoo.inference.predictor import Predictor

        sources = find_sources(videos, camera)
        # the predictor refuses a precision that it does not know
        predictor = Predictor(model, device, precision=cast("Precision", precision), tile=side, memory=limit)
        taken: set[str] = set()
        done = predict_images(predictor, images, out, taken, failures)
        clips = predict_videos(predictor, sources, frames, out, taken, failures)
        if json != "-":
            show_results(done, clips, predictor, out)
    for failure in failures:
        print_error(ValueError(failure["error"]))
    report({"model": model, "images": done, "videos": clips, "failures": failures}, json)
    if failures:
        raise typer.Exit(2)


def parse_tile(text: str | None) -> int | Literal["auto"] | None:
    """``auto`` or a number of pixels. Raises ValueError."""
    if text is None:
        return None
    if text == "auto":
        return "auto"
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"--tile is {text!r}, expected auto or a number of pixels such as 1024")
    return int(text)


def parse_memory(text: str) -> int:
    """``4GiB``, ``2500 MB`` or a number of bytes as bytes. Raises ValueError."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?) ?([kmg]i?b)?", text, flags=re.ASCII | re.IGNORECASE)
    amount = Fraction(match[1]) * UNITS[(match[2] or "").lower()] if match else 0
    if amount < 1:
        raise ValueError(f"--memory is {text!r}, expected an amount such as 4GiB or 2500MB")
    return int(amount)


def find_images(path: Path, out: Path, failures: list[dict[str, str]]) -> Iterable[Path]:
    """The file itself, or the images in a folder and its subfolders, without those that an earlier call wrote."""
    if not path.is_dir():
        return [path]
    from ddsm_zoo.data.images import SUFFIXES

    candidates = [*path.glob("*"), *(file for file in path.glob("*/*") if file.parent.resolve() != out.resolve())]
    found = [
        file
        for file in sorted(candidates)
        if file.suffix.lower() in SUFFIXES and file.is_file() and not file.name.endswith(WRITTEN)
    ]
    if not found:
        note_failure(
            failures, path, ValueError(f"no images in the folder {path}, expected {', '.join(sorted(SUFFIXES))}")
        )
    return found


def predict_images(
    predictor: Predictor, images: Sequence[Path], out: Path, taken: set[str], failures: list[dict[str, str]]
) -> list[dict[str, Any]]:
    """Label each image and write its pictures, while the next are read and the last ones written.

    A bad image is noted and the others are still done. Pictures that need tiles go one by one: several would not fit.
    """
    from ddsm_zoo.utils.prefetch import passing_errors, prefetch

    done: list[dict[str, Any]] = []
    with progress_bar() as progress:
        show_tiles = task_of(progress, "tiles")

        def read(path: Path, _: None) -> Image.Image:
            return predictor.read(path)

        def label(path: Path, picture: Image.Image) -> tuple[str, Segmentation]:
            result = predictor(picture, show_tiles)
            return free_stem(path.stem, taken), result

        def write(path: Path, labeled: tuple[str, Segmentation]) -> dict[str, Any]:
            stem, result = labeled
            files = {kind: str(file) for kind, file in result.save(out, stem).items()}
            return {"image": str(path), "size": list(result.mask.shape), "shares": result.shares(), "files": files}

        ahead = 0 if predictor.tile else THREADS
        pictures = prefetch(passing_errors(read), ((image, None) for image in images), THREADS, ahead)
        results = prefetch(passing_errors(write), map(passing_errors(label), pictures), THREADS, ahead)
        for path, entry in progress.track(results, total=len(images), description="predicting"):
            if isinstance(entry, Exception):
                note_failure(failures, path, entry)
            else:
                done.append(entry)
    return done


def find_sources(videos: Sequence[Path], camera: int | None) -> dict[str, VideoSource]:
    """What FFmpeg is to open, by the name under which it is reported. Raises LookupError without the package av."""
    if not videos and camera is None:
        return {}
    from ddsm_zoo.inference.video import VideoSource, find_av

    find_av()  # before a model is loaded
    sources = {str(path): VideoSource(name=str(path)) for path in videos}
    return sources if camera is None else {**sources, f"camera-{camera}": VideoSource.camera(camera)}


def predict_videos(
    predictor: Predictor,
    sources: Mapping[str, VideoSource],
    frames: int | None,
    out: Path,
    taken: set[str],
    failures: list[dict[str, str]],
) -> list[dict[str, Any]]:
    """Write each video under its classes; a bad one is noted and the others are still done."""
    done: list[dict[str, Any]] = []
    for name, source in sources.items():
        from ddsm_zoo.inference.video import label_video

        target = out / f"{free_stem(Path(name).stem, taken)}_overlay.mp4"
        try:
            with progress_bar() as progress:
                clip = label_video(predictor, source, target, frames=frames, progress=task_of(progress, name))
        except (ValueError, OSError) as error:
            note_failure(failures, Path(name), error)
        else:
            done.append({"video": name, **clip.to_dict(), "files": {"overlay": str(target)}})
    return done


def task_of(progress: Progress, description: str) -> Callable[[int, int], None]:
    """A bar of its own, shown while there is something to do; a total of 0 is one that nobody knows."""
    task = progress.add_task(description, visible=False)

    def show(complete: int, total: int) -> None:
        progress.update(task, completed=complete, total=total or None, visible=complete != total)

    return show


def show_results(
    images: Sequence[Mapping[str, Any]], clips: Sequence[Mapping[str, Any]], predictor: Predictor, out: Path
) -> None:
    if images:
        print_shares([entry["shares"] for entry in images], predictor.labels)
        print_lines([f"{len(WRITTEN)} pictures for each of {len(images)} images in {out}"])
    for clip in clips:
        print_shares([clip["shares"]], predictor.labels)
        height, width = clip["size"]
        pace = f"{clip['seconds']:.1f} s: {clip['frames_per_second']:.1f} frames/s"
        print_lines([f"{clip['files']['overlay']}: {clip['frames']} frames of {width} x {height} in {pace}"])


def free_stem(stem: str, taken: set[str]) -> str:
    """``stem``, numbered where another input has it already; case does not tell names apart on every file system."""
    name, number = stem, 1
    while name.casefold() in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(name.casefold())
    return name


def note_failure(failures: list[dict[str, str]], image: Path, error: Exception) -> None:
    failures.append({"image": str(image), "error": one_line(error)})
