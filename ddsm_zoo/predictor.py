"""From an image to its mask: the call most users need."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ddsm_zoo.config import from_dict
from ddsm_zoo.data.images import read_image, to_rgb
from ddsm_zoo.data.transforms import ImageTransform
from ddsm_zoo.engine.inference import whole
from ddsm_zoo.factory import create_trained, resolve_data_config
from ddsm_zoo.files import atomic_path
from ddsm_zoo.labels import LabelSpace
from ddsm_zoo.models import Segmenter
from ddsm_zoo.visualize import colourise, overlay, shares

Picture = str | os.PathLike[str] | Image.Image | npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """The prediction for one image: ``mask`` (H, W) uint8 class ids, what they mean, and the RGB image they cover."""

    mask: npt.NDArray[np.uint8]
    labels: LabelSpace
    image: Image.Image

    def colour(self) -> Image.Image:
        """The mask in the colours of the classes."""
        return colourise(self.mask, self.labels)

    def overlay(self, alpha: float = 0.5) -> Image.Image:
        """The image under the coloured mask, with a legend of the classes; ``alpha`` is the weight of the colours."""
        return overlay(self.image, self.mask, self.labels, alpha=alpha)

    def shares(self) -> dict[str, float]:
        """The fraction of all pixels that each class takes, for every class in the order of the labels."""
        return shares(self.mask, self.labels)

    def save(self, folder: str | os.PathLike[str], stem: str) -> dict[str, Path]:
        """Write ``STEM_ids.png`` (class ids), ``STEM_colour.png`` and ``STEM_overlay.png``; their paths by kind.

        Raises OutputError when one cannot be written, and then writes none.
        """
        pictures = {"ids": Image.fromarray(self.mask), "colour": self.colour(), "overlay": self.overlay()}
        paths = {kind: Path(folder) / f"{stem}_{kind}.png" for kind in pictures}
        with contextlib.ExitStack() as whole_files:  # none takes its place before all are written
            for kind, picture in pictures.items():
                picture.save(whole_files.enter_context(atomic_path(paths[kind])))
        return paths


class Predictor:
    """A model made ready to label images of any size.

    ``model`` is a name that `create_model` takes, whose pretrained weights are loaded, or a model, which is moved to
    ``device``, put into evaluation mode and laid out channels-last. The device is a GPU where there is one unless
    given. Raises what `create_model` raises, and ValueError for a model that takes other than 3 channels or has more
    than 256 classes.
    """

    def __init__(self, model: str | Segmenter, device: str | torch.device | None = None) -> None:
        self.model = prepare(model, device)
        self.labels = model_labels(self.model)
        if len(self.labels) > 256:
            raise ValueError(f"the model has {len(self.labels)} classes, a mask of 8 bits holds at most 256")
        self.transform = ImageTransform(resolve_data_config(self.model))
        self.predict = whole(self.model)

    def __call__(self, image: Picture) -> Segmentation:
        """Label one image: a path, a PIL image or a uint8 array (H, W, 3) RGB or (H, W) grey.

        A file is turned upright by its EXIF orientation. Raises FileNotFoundError, ImageError for a file that cannot
        be read, and ValueError for another kind of array or a model that gives NaN.
        """
        if isinstance(image, (str, os.PathLike)):
            image = read_image(Path(image))
        elif isinstance(image, Image.Image):
            image = to_rgb(image)
        tensor = self.transform(image)
        if not isinstance(image, Image.Image):
            image = Image.fromarray(image)
        logits = self.predict(tensor[None])
        if logits.isnan().any():
            raise ValueError("the model gives NaN on this image; its weights are probably damaged")
        mask = logits[0].argmax(0).to("cpu", torch.uint8).numpy()
        return Segmentation(mask=mask, labels=self.labels, image=image.convert("RGB"))


def model_labels(model: Segmenter) -> LabelSpace:
    """What the class ids of ``model`` mean; numbered classes for a model whose weights do not say."""
    names = [f"class {index}" for index in range(model.num_classes)]
    return recorded_labels(model) or LabelSpace.from_names(names, ignore_index=max(255, model.num_classes))


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device of that name, a GPU where there is one for None. Raises ValueError for one that is not here."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        # The way to ask whether a device is here, of whatever kind it is.
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device {str(device)!r} cannot be used here, expected cpu, or cuda where there is a GPU"
        ) from error


def prepare(model: str | Segmenter, device: str | torch.device | None) -> Segmenter:
    """The model, or the pretrained one of that name, on its device and ready to predict RGB images.

    A model that was given keeps its layers. One that is made here has its normalisation folded, which is faster and
    changes the logits by rounding alone.
    """
    chosen = choose_device(device)
    if isinstance(model, str):
        model = create_trained(model).fuse()
    if model.config.in_chans != 3:
        raise ValueError(f"the model takes {model.config.in_chans} channels, images are read as RGB, 3 of them")
    return model.to(chosen).eval()


def recorded_labels(model: Segmenter) -> LabelSpace | None:
    """What the class ids of ``model`` mean as far as its weights say, None where they do not."""
    recorded = model.pretrained_cfg.get("labels")
    if recorded is None or len(recorded["names"]) != model.num_classes:  # as after reset_classifier
        return None
    return from_dict(LabelSpace, recorded, where="pretrained_cfg.labels")
