"""Command ``import-data``: turn the export of an annotation tool into a data set to train on."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddsm_zoo.cli.app import JsonOption, app
from ddsm_zoo.cli.console import check_folder, check_output, percent, print_lines, print_table, progress_bar, report

if TYPE_CHECKING:
    from ddsm_zoo.data.importing.run import ImportReport


class DataFormat(str, Enum):
    coco = "coco"
    labelme = "labelme"
    voc = "voc"
    cvat = "cvat"
    yolo = "yolo"
    roboflow = "roboflow"
    ade20k = "ade20k"
    class_masks = "class-masks"


class Boxes(str, Enum):
    leave = "leave"
    fill = "fill"


class Crowd(str, Enum):
    ignore = "ignore"
    as_class = "class"


class Overlap(str, Enum):
    order = "order"
    area = "area"


@app.command("import-data")
def import_data(
    format: Annotated[DataFormat, typer.Argument(help="Format of the export (see above).", metavar="FORMAT")],
    source: Annotated[Path, typer.Argument(help="Folder with the unpacked export.", metavar="SOURCE")],
    dest: Annotated[Path, typer.Argument(help="Folder to create. It must not exist.", metavar="DEST")],
    background: Annotated[
        str | None,
        typer.Option(
            help="Class of all other pixels, or ignore. Default: background; for ade20k ignore.",
            metavar="NAME",
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(help="Ignore the pixels of this class. May be repeated.", metavar="NAME"),
    ] = None,
    boxes: Annotated[
        Boxes, typer.Option(help="Boxes without a mask: leave them out, or fill them as rectangles.")
    ] = Boxes.leave,
    crowd: Annotated[
        Crowd, typer.Option(help="COCO areas with iscrowd: ignore them, or use their class.")
    ] = Crowd.ignore,
    overlap: Annotated[
        Overlap, typer.Option(help="Overlapping areas: the last in drawing order wins, or the smallest.")
    ] = Overlap.order,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images, if not in SOURCE.", metavar="DIR", show_default=False)
    ] = None,
    link: Annotated[
        bool, typer.Option("--link", help="Create symbolic links to the images instead of copies.")
    ] = False,
    json: JsonOption = None,
) -> None:
    """Convert the export of an annotation tool into a data set for training: images/, masks/ and labels.json in DEST.

    Formats: coco, labelme, voc (Pascal VOC), cvat (CVAT for images), yolo (YOLO-seg), roboflow (masks), ade20k,
    class-masks (a black and white mask for each class or object). Polygons and CVAT need the extra formats. The
    documentation's page Data explains what to export from each tool.

    Examples:

    ddsm-zoo import-data coco my_export mydata

    ddsm-zoo train --recipe finetune --data folder:mydata --out runs/mine --pretrained
    """
    check_output(json)
    check_folder(dest.expanduser().parent)
    from ddsm_zoo.data.importing.annotations import ImportOptions
    from ddsm_zoo.data.importing.run import import_data

    options = ImportOptions(
        background=background,
        ignore=tuple(ignore or ()),
        boxes=boxes is Boxes.fill,
        crowd=crowd is Crowd.as_class,
        overlap="area" if overlap is Overlap.area else "order",
        images=images,
        link=link,
    )
    with progress_bar() as bar:
        task = bar.add_task("importing", total=None)
        done = import_data(
            format.value, source, dest, options, lambda count, total: bar.update(task, completed=count, total=total)
        )
    report(done.to_plain(), json)
    if json != "-":
        show_import(done)


def show_import(done: ImportReport) -> None:
    """Print the classes, then the splits, the assumptions, and what was left out, a line each."""
    total = max(1, sum(done.pixels))
    rows = [
        (name, percent(pixels / total), str(images))
        for name, pixels, images in zip(done.labels.names, done.pixels, done.occurs, strict=True)
    ]
    print_table(done.data, ("class", "share %", "images"), rows)
    for split, count in done.splits.items():
        empty = f", {done.empty[split]} of them without annotations: all background" if done.empty.get(split) else ""
        print_lines([f"{split}: {count} image{'s' * (count != 1)}{empty}"])
    if done.ignored:
        print_lines([f"ignored: {done.ignored} pixels"])
    print_lines(f"note: {line}" for line in done.findings.notes.lines())
    print_lines(f"left out: {line}" for line in done.findings.left_out.lines())
    print_lines([f"next: ddsm-zoo check-data {done.data}"])
