"""``predict``: from images to masks and pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddsm_zoo.cli.app import DeviceOption, JsonOption, ModelOption, app
from ddsm_zoo.console import (
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
    from ddsm_zoo.predictor import Predictor

DEFAULT_MODEL = "uper_ddsm_lite0_camvid"
WRITTEN = ("_ids.png", "_colour.png", "_overlay.png")


@app.command()
def predict(
    paths: Annotated[list[Path], typer.Argument(help="Images, or folders of images and of folders of images.")],
    model: ModelOption = DEFAULT_MODEL,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.", metavar="DIR")] = Path(
        "predictions"
    ),
    device: DeviceOption = None,
    json: JsonOption = None,
) -> None:
    """Label images: writes NAME_ids.png (class ids), NAME_colour.png and NAME_overlay.png for each of them.

    ddsm-zoo predict street.jpg

    ddsm-zoo predict holiday/ street.jpg -o masks --model uper_ddsm_lite0_camvid --json -
    """
    check_folder(out)
    check_output(json)
    failures: list[dict[str, str]] = []
    images = [image for path in paths for image in find_images(path, out, failures)]
    done: list[dict[str, Any]] = []
    if images:
        from ddsm_zoo.predictor import Predictor

        predictor = Predictor(model, device)
        done = predict_images(predictor, images, out, failures)
        if done and json != "-":
            print_shares([entry["shares"] for entry in done], predictor.labels)
            print_lines([f"{len(WRITTEN)} pictures for each of {len(done)} images in {out}"])
    report({"model": model, "images": done, "failures": failures}, json)
    if failures:
        raise typer.Exit(2)


def find_images(path: Path, out: Path, failures: list[dict[str, str]]) -> Iterable[Path]:
    """The image itself, or the images in a folder and its subfolders, without those that an earlier call wrote."""
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
    predictor: Predictor, images: Sequence[Path], out: Path, failures: list[dict[str, str]]
) -> list[dict[str, Any]]:
    """Label each image once and write its pictures; a bad image is noted and the others are still done."""
    done: list[dict[str, Any]] = []
    stems: set[str] = set()
    unique = list({image.absolute(): image for image in images}.values())
    with progress_bar() as progress:
        for image in progress.track(unique, description="predicting"):
            try:
                result = predictor(image)
                files = result.save(out, free_stem(image.stem, stems))
            except (ValueError, OSError) as error:
                note_failure(failures, image, error)
                continue
            entry = {"image": str(image), "size": list(result.mask.shape), "shares": result.shares()}
            done.append({**entry, "files": {kind: str(path) for kind, path in files.items()}})
    return done


def free_stem(stem: str, taken: set[str]) -> str:
    """``stem``, numbered where another input has it already; case does not tell names apart on every file system."""
    name, number = stem, 1
    while name.casefold() in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(name.casefold())
    return name


def note_failure(failures: list[dict[str, str]], image: Path, error: Exception) -> None:
    print_error(error)
    failures.append({"image": str(image), "error": one_line(error)})
