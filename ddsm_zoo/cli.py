"""The shell command ``ddsm-zoo``: parse, call, print. What a command knows how to do lives in the library."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.logging import RichHandler
from typer.core import TyperGroup

from ddsm_zoo.console import (
    check_folder,
    check_output,
    one_line,
    percent,
    print_error,
    print_lines,
    print_shares,
    print_table,
    progress_bar,
    report,
    stderr,
    training_bar,
)

# torch takes seconds to import: each command imports what it needs, so that help comes at once.
if TYPE_CHECKING:
    from ddsm_zoo.predictor import Predictor
    from ddsm_zoo.zoo import Entry

DEFAULT_MODEL = "uper_ddsm_lite0_camvid"
WRITTEN = ("_ids.png", "_colour.png", "_overlay.png")


class OneLineErrors(TyperGroup):
    """Errors that a user can cause end the command with one line on stderr and status 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            stderr.print("interrupted")
            raise typer.Exit(130) from None
        except BrokenPipeError:  # the reader left, as `head` does: typer ends quietly
            raise
        except (ValueError, LookupError, OSError) as error:
            if type(error) in (
                KeyError,
                IndexError,
            ):  # ours are subclasses: a bare one is a bug that needs its traceback
                raise
            print_error(error)
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

ModelOption = Annotated[
    str,
    typer.Option("--model", "-m", help="A name of `ddsm-zoo list`, hf-hub:ORG/REPO or local-dir:PATH.", metavar="NAME"),
]
DataOption = Annotated[
    str, typer.Option("--data", "-d", help="camvid:ROOT, cityscapes:ROOT, folder:ROOT or scenes:N.", metavar="SPEC")
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; unless given, a GPU where there is one.")]
JsonOption = Annotated[
    str | None, typer.Option("--json", help="Write the figures to FILE; - is standard output.", metavar="FILE")
]


def main() -> None:
    """The entry point of the shell command."""
    app()


def print_version(wanted: bool) -> None:
    if wanted:
        from ddsm_zoo import __version__

        print_lines([__version__])
        raise typer.Exit


@app.callback()
def configure(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=print_version, is_eager=True)
    ] = False,
) -> None:
    """Fine-grained semantic segmentation with the Dynamic Dual Sampling Module.

    Label a street with the bundled model:  ddsm-zoo predict street.jpg
    """
    logger = logging.getLogger("ddsm_zoo")
    logger.handlers = [RichHandler(console=stderr, show_time=False, show_level=False, show_path=False)]
    logger.setLevel(logging.INFO)


@app.command("list")
def list_models(
    pattern: Annotated[str, typer.Argument(help="Names with shell wildcards, in quotes.", metavar="[FILTER]")] = "*",
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Only models whose weights exist.")] = False,
    json: JsonOption = None,
) -> None:
    """List the models, one name a line.

    ddsm-zoo list "uper_ddsm*"

    ddsm-zoo list --pretrained
    """
    from ddsm_zoo import zoo

    names = zoo.list_models(pattern, pretrained=pretrained)
    if not names:
        kind = "model with weights" if pretrained else "model"
        raise LookupError(f"no {kind} matches {pattern!r}; `ddsm-zoo list` has all names")
    report(names, json)
    if json != "-":
        print_lines(names)


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="A name of `ddsm-zoo list`, hf-hub:ORG/REPO or local-dir:PATH.")],
    size: Annotated[str, typer.Option(help="Image size for the multiply-adds: one number, or HxW.")] = "1024",
    json: JsonOption = None,
) -> None:
    """Show architecture, parameters, multiply-adds and weights of a model; nothing is downloaded.

    ddsm-zoo info uper_ddsm_r101_cityscapes --size 1024x2048 --json -
    """
    height, width = parse_size(size)
    check_output(json)
    from ddsm_zoo.config import to_dict
    from ddsm_zoo.factory import look_up
    from ddsm_zoo.models import complexity

    entry = look_up(model)
    cost = complexity(entry.config, (height, width))
    figures = {
        "model": entry.name,
        "params": cost.params,
        "multiply_adds": cost.multiply_adds,
        "size": [height, width],
        "config": to_dict(entry.config),
        "weights": to_dict(entry.weights) if entry.weights else None,
        "pretrained": entry.published,
    }
    report(figures, json)
    if json == "-":
        return
    rows = [
        ("parameters", f"{cost.params / 1e6:.2f} M"),
        ("multiply-adds", f"{cost.multiply_adds / 1e9:.1f} G at {height} x {width}"),
        ("backbone", entry.config.backbone),
        ("classes", str(entry.config.num_classes)),
        ("weights", describe_weights(entry)),
    ]
    if entry.weights:
        rows += [(f"{name}, measured", f"{value:g}") for name, value in entry.weights.metrics.items()]
        rows += [(f"{name}, in the paper", f"{value:g}") for name, value in entry.weights.published.items()]
    print_table(entry.name, ("", ""), rows)


@app.command()
def train(
    recipe: Annotated[Path, typer.Option("--recipe", "-r", help="A TOML file, see recipes/.", metavar="FILE")],
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.", metavar="DIR")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="In place of the recipe's.", metavar="NAME")
    ] = None,
    pretrained: Annotated[
        bool | None,
        typer.Option(
            help="Start from the model's task weights, or from random numbers; unless given, from the ImageNet weights "
            "of its backbone.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in DIR.")] = False,
    epochs: Annotated[int | None, typer.Option(help="In place of the recipe's.")] = None,
    workers: Annotated[int | None, typer.Option(help="Loading processes, in place of the recipe's.")] = None,
    json: JsonOption = None,
) -> None:
    """Train a model on the splits train and val of a data set. Ctrl-C saves the run, --resume goes on with it.

    DIR/best holds the model that scored highest on val: ddsm-zoo predict street.jpg --model local-dir:DIR/best

    ddsm-zoo train --recipe recipes/camvid_lite0.toml --data camvid:data/camvid --out runs/camvid

    ddsm-zoo train --recipe recipes/camvid_lite0.toml --data folder:my_data --out runs/mine --pretrained
    """
    from ddsm_zoo.engine.recipe import Recipe

    given: dict[str, Any] = {"model": model, "epochs": epochs, "workers": workers}
    changes = {name: value for name, value in given.items() if value is not None}
    chosen = dataclasses.replace(Recipe.load(recipe), **changes)
    check_folder(out)
    check_output(json)
    try:
        from ddsm_zoo.training import run_recipe
    except ModuleNotFoundError as error:
        raise LookupError(f"training needs the package {error.name}: pip install 'ddsm-zoo[train]'") from error
    with training_bar() as show:
        summary = run_recipe(chosen, data, out, pretrained=pretrained, resume=resume, source=recipe.name, progress=show)
    report(summary, json)
    if summary["interrupted"]:
        stderr.print("interrupted; the run is saved: the same command with --resume goes on with it", soft_wrap=True)
        raise typer.Exit(130)
    if json != "-":
        print_lines(
            [f"best mIoU {summary['best_miou']:.4f} in epoch {summary['best_epoch']}: local-dir:{out / 'best'}"]
        )


@app.command()
def evaluate(
    model: ModelOption,
    data: DataOption,
    split: Annotated[str, typer.Option(help="The split to score on.")] = "val",
    batch_size: Annotated[int, typer.Option(min=1, help="Images of one size that are predicted together.")] = 1,
    device: DeviceOption = None,
    json: JsonOption = None,
) -> None:
    """Score a model: mIoU and IoU of each class, at the labels' own resolution.

    ddsm-zoo evaluate --model uper_ddsm_lite0_camvid --data camvid:data/camvid --split val --json scores.json
    """
    check_output(json)
    from ddsm_zoo.predictor import evaluate

    with progress_bar() as progress:
        task = progress.add_task("evaluating", total=None)
        result = evaluate(
            model,
            data,
            split,
            device=device,
            batch_size=batch_size,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    report(result, json)
    if json == "-":
        return
    rows = [(name, percent(iou)) for name, iou in result["iou"].items()]
    means = {"mIoU": "miou", "pixel accuracy": "pixel_accuracy", "mean accuracy": "mean_accuracy"}
    rows += [(title, percent(result[key])) for title, key in means.items()]
    print_table(f"{model} on {data} {split}, {result['count']} images", ("class", "IoU %"), rows)
    if absent := [name for name, iou in result["iou"].items() if math.isnan(iou)]:
        print_lines([f"never occurred, left out of the mean: {', '.join(absent)}"])


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


@app.command()
def save(
    model: Annotated[str, typer.Argument(help="A model with weights: a name, hf-hub:ORG/REPO or local-dir:PATH.")],
    folder: Annotated[Path, typer.Argument(help="Where to write it.", metavar="DIR")],
    half: Annotated[bool, typer.Option("--half", help="Store kernels in 16 bits, for half the size.")] = False,
) -> None:
    """Write a pretrained model as a folder with config.json and model.safetensors, which local-dir:DIR loads again.

    ddsm-zoo save uper_ddsm_lite0_camvid models/camvid
    """
    check_folder(folder)
    from ddsm_zoo.factory import create_trained, save_pretrained

    save_pretrained(create_trained(model), folder, half=half)
    print_lines([f"local-dir:{folder}"])


def describe_weights(entry: Entry) -> str:
    if entry.weights is None:
        return "none, this is an architecture"
    if entry.published:
        return f"{entry.weights.dataset}, {entry.weights.uri}"
    return f"{entry.weights.dataset}, not published yet: train them with {entry.weights.recipe}"


def parse_size(text: str) -> tuple[int, int]:
    """``1024`` or ``1024x2048`` as (H, W). Raises ValueError."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdigit() and 0 < int(side) <= 65536 for side in sides):
        raise ValueError(f"size is {text!r}, expected pixels such as 1024, or height x width such as 1024x2048")
    return int(sides[0]), int(sides[-1])


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
