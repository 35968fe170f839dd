"""Progress of a training run in pictures: predictions on validation images, a curve, TensorBoard."""

from __future__ import annotations

import io
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from ddsm_zoo.data.datasets import SegmentationDataset
from ddsm_zoo.errors import PackageError
from ddsm_zoo.inference.scores import predict_ids
from ddsm_zoo.layers import resize
from ddsm_zoo.utils.files import OutputError, atomic_path
from ddsm_zoo.utils.visualize import WHITE, add_legend, colorize

PICTURE, CURVE, EVENTS = "val.png", "curve.png", "tensorboard"
_SAMPLES = 4
_PANEL = 400  # pixels across
_CAPTION = 24  # pixels high

logger = logging.getLogger(__name__)


class VisualLog:
    """Draw pictures of a run at the end of each epoch, as the ``observe`` callback of `training.loop.Hooks`.

    After each validation it rewrites two files in ``out_dir``. ``val.png`` shows a few images of ``val_set`` with label
    and prediction, always the same ones. ``curve.png`` shows loss and mIoU by epoch from ``log.jsonl``, if matplotlib
    is installed. With ``tensorboard``, the metrics of each epoch and the picture also go to ``tensorboard/``. A picture
    that cannot be written causes only a warning, because it must not end the run.

    Raises LookupError if TensorBoard is requested and not installed.
    """

    def __init__(self, out_dir: Path, val_set: SegmentationDataset, *, tensorboard: bool = False) -> None:
        self.out_dir, self.val_set, self.tensorboard = out_dir, val_set, tensorboard
        self._writer: Any = None
        self._draws = True
        if tensorboard:
            try:
                import torch.utils.tensorboard  # noqa: F401 - fails now, not after the first epoch
            except ModuleNotFoundError as error:
                raise PackageError(
                    "--tensorboard needs the package tensorboard: pip install tensorboard", name="tensorboard"
                ) from error

    def __call__(self, entry: Mapping[str, Any], model: nn.Module) -> None:
        picture = None
        if "miou" in entry:
            picture = sample_sheet(model, self.val_set, f"epoch {entry['epoch']}, mIoU {entry['miou']:.2%}")
            self._save(picture, PICTURE)
            self._draw_curve()
        if self.tensorboard:
            self._record(entry, picture)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _save(self, picture: Image.Image, name: str) -> None:
        try:
            with atomic_path(self.out_dir / name) as temporary:
                picture.save(temporary)
        except OutputError as error:
            logger.warning("%s", error)

    def _draw_curve(self) -> None:
        if not self._draws:
            return
        try:
            curve = draw_curve(read_epochs(self.out_dir / "log.jsonl"))
        except ModuleNotFoundError:
            self._draws = False
            logger.info("no %s: pip install matplotlib; the figures are in log.jsonl", CURVE)
        else:
            self._save(curve, CURVE)

    def _record(self, entry: Mapping[str, Any], picture: Image.Image | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Not accelerate's trackers: only its TensorBoard tracker has purge_step and the layout of images as arguments.
        # With any other tracker a resumed run would repeat epochs, and images would need code of their own.
        epoch = entry["epoch"]
        if self._writer is None:
            # Hides the entries of an interrupted run for this epoch and later ones.
            self._writer = SummaryWriter(str(self.out_dir / EVENTS), purge_step=epoch)
        for name in ("loss", "lr", "miou", "images_per_second"):
            if name in entry:
                self._writer.add_scalar(name, entry[name], epoch)
        for kind in ("taps_on_map", "blind", "mean_offset"):
            for name, value in entry.get(kind, {}).items():
                self._writer.add_scalar(f"{kind}/{name}", value, epoch)
        for name, value in zip(self.val_set.labels.in_masks.names, entry.get("iou", ()), strict="iou" in entry):
            if math.isfinite(value):  # a class that occurs
                self._writer.add_scalar(f"iou/{name}", value, epoch)
        if picture is not None:
            self._writer.add_image("val", np.asarray(picture), epoch, dataformats="HWC")
        self._writer.flush()


@torch.no_grad()
def sample_sheet(model: nn.Module, val_set: SegmentationDataset, caption: str) -> Image.Image:
    """Draw up to four images spread over ``val_set``, one row each: image, label, prediction.

    The legend has the classes that occur in them. ``model`` must be in evaluation mode.
    """
    count = len(val_set)
    indices = [place * count // min(_SAMPLES, count) for place in range(min(_SAMPLES, count))]
    labels = val_set.labels.in_masks
    rows, masks = [], []
    for index in indices:
        image, mask = val_set.load(index)
        given = image if val_set.transform is None else val_set.transform(image, mask)[0]
        device = next(model.parameters()).device
        logits = model(given[None].to(device))
        prediction = predict_ids(resize(logits, (mask.shape[0], mask.shape[1])))[0].cpu()
        masks += [mask.numpy(), prediction.numpy()]
        panels = [Image.fromarray(image.permute(1, 2, 0).numpy())]
        panels += [colorize(ids, labels) for ids in masks[-2:]]
        rows.append([_fitted(panel, smooth=place == 0) for place, panel in enumerate(panels)])
    height = sum(row[0].height for row in rows)
    sheet = Image.new("RGB", (3 * _PANEL, _CAPTION + height), WHITE)
    text = f"{caption}: image, label, prediction"
    ImageDraw.Draw(sheet).text((6, 3), text, fill=(0, 0, 0), font=ImageFont.load_default(_CAPTION - 10))
    top = _CAPTION
    for row in rows:
        for place, panel in enumerate(row):
            sheet.paste(panel, (place * _PANEL, top))
        top += row[0].height
    return add_legend(sheet, masks, labels)


def read_epochs(log: Path) -> list[dict[str, Any]]:
    """Return the epoch entries of a run's log."""
    entries = (json.loads(line) for line in log.read_text(encoding="utf-8").splitlines())
    return [entry for entry in entries if entry["event"] == "epoch"]


def draw_curve(epochs: list[dict[str, Any]]) -> Image.Image:
    """Draw loss, mIoU and each sampler's taps on the map by epoch. Raises ModuleNotFoundError without matplotlib."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(8, 4.5), dpi=100, layout="constrained")
    loss = figure.subplots()
    loss.plot([entry["epoch"] for entry in epochs], [_number(entry["loss"]) for entry in epochs], color="tab:gray")
    loss.set(xlabel="epoch", ylabel="training loss (gray)")
    loss.xaxis.set_major_locator(MaxNLocator(integer=True))
    scored = [entry for entry in epochs if "miou" in entry]
    score = loss.twinx()
    score.plot([entry["epoch"] for entry in scored], [_number(entry["miou"]) for entry in scored], marker=".")
    best = max((_number(entry["miou"]) for entry in scored if entry["miou"] is not None), default=math.nan)
    score.yaxis.set_major_formatter(PercentFormatter(1.0))
    score.set(ylabel="mIoU on val (blue)", ylim=(0, 1), title=f"best mIoU {best:.2%}")
    sampled = [entry for entry in epochs if "taps_on_map" in entry]
    for name in sampled[-1]["taps_on_map"] if sampled else ():
        shares = [entry["taps_on_map"].get(name, math.nan) for entry in sampled]
        score.plot([entry["epoch"] for entry in sampled], shares, linestyle=":", linewidth=1, label=name)
    if sampled:
        score.legend(title="taps on the map", loc="lower right", fontsize="x-small", title_fontsize="x-small")
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return Image.open(png).convert("RGB")


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _fitted(picture: Image.Image, *, smooth: bool) -> Image.Image:
    """Resize a picture to the panel's width. ``smooth=False`` does not mix the colors of ids."""
    size = (_PANEL, max(1, round(picture.height * _PANEL / picture.width)))
    return picture.resize(size, Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST)
