"""What the pages name and readers bring: pictures, data sets, trained models, a Hub; all of them small."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import av
import numpy as np
import safetensors.torch
import timm
import torch

import ddsm_zoo
from ddsm_zoo.config import WeightsSpec
from ddsm_zoo.data.scenes.render import render_scene
from ddsm_zoo.labels import CAMVID, CITYSCAPES, LabelSpace
from ddsm_zoo.models import Segmenter
from ddsm_zoo.models.saving import pack
from ddsm_zoo.training.recipe import find_recipe, list_recipes
from ddsm_zoo.zoo.publishing import describe_weights
from tests.support.cityscapes_root import write_root
from tests.support.data_sets import write, write_labels
from tests.support.exports import FIELD, polygon, write_coco
from tests.support.hub_server import HubServer
from tests.support.pages import ROOT

# What a recipe is shortened to; all else in it is used as it is
SHORT = {"epochs": "1", "crop_size": "[64, 96]", "workers": "0"}
RECIPES = "recipes of the package"  # the folder of the shortened ones
IMAGENET = ("test_resnet.r160_in1k", "test_convnext.r160_in1k")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is done for one page: ``swaps`` replace what would take too long, ``runs`` are trained models it names."""

    swaps: Mapping[str, str] = field(default_factory=dict)
    runs: Mapping[str, LabelSpace] = field(default_factory=dict)


HUB = {"OWNER/ddsm-zoo": "OWNER/ddsm-zoo:main"}
SETTINGS = {
    "README.md": Setting(
        swaps={"uper_ddsm_r50": "uper_ddsm_tiny", "convnext_tiny.fb_in22k": "test_convnext.r160_in1k", **HUB}
    ),
    "docs/recipes.md": Setting(swaps={"RECIPE": "camvid_480", "MODEL": "uper_ddsm_tiny", "DATA": "camvid:ROOT"}),
    "docs/evaluation.md": Setting(
        swaps={
            "--model NAME": "--model local-dir:runs/cs/best",
            "bootstrap 1000": "bootstrap 20",
            "block:10": "block:1",  # of two images
        },
        runs={"a": CAMVID, "b": CAMVID, "cs": CITYSCAPES},
    ),
    "docs/explain.md": Setting(
        swaps={"166,205": "55,38", "(166, 205)": "(55, 38)", "render_scene(21)": "render_scene(21, (96, 128))"},
        runs={"plain": CAMVID, "ddsm": CAMVID},
    ),
    "docs/extending.md": Setting(
        swaps={
            "epochs=20": "epochs=1",
            "batch_size=2": "batch_size=2, workers=0",
            "(352, 480)": "(64, 96)",
            "--recipe finetune --data": "--recipe finetune --model uper_ddsm_tiny --no-pretrained --data",
            "runs/survey --pretrained": "runs/survey",
        }
    ),
    "docs/fine-tuning.md": Setting(
        swaps={
            "range(30)": "range(5)",
            "(5000 + number)": "(5000 + number, (96, 128))",
            "< 20": "< 3",
            "val/25.png": "val/4.png",
            '"epochs": 10': '"epochs": 1, "model": "uper_ddsm_tiny"',
        }
    ),
    "docs/index.md": Setting(swaps={"--recipe finetune": "--recipe finetune --model uper_ddsm_tiny"}),
    "docs/performance.md": Setting(
        swaps={
            "--suite op": "--suite op --side 8",
            "--size 1024 --repeats 3 --busy": "--size 32 --repeats 1",
            "--suite growth": "--suite growth --side 16 --side 32",
        }
    ),
    "docs/publishing.md": Setting(
        swaps={
            "uper_ddsm_r101": "uper_ddsm_tiny",
            "$(mktemp -d)": "empty",
            "_PUBLICATIONS = {": "from ddsm_zoo.zoo.table import Publication\n_PUBLICATIONS = {",
        },
    ),
    "docs/scaling.md": Setting(
        swaps={
            "camvid_lite0 camvid:ROOT": "camvid_lite0 camvid:ROOT --workers 0 --steps 1",
            "$SLURM_NODEID": "0",
            "RANK": "0",
        }
    ),
    "docs/weights.md": Setting(
        swaps={"resnet50c": "test_resnet", "width=512": "width=32", "--width 512": "--width 32", **HUB},
        runs={"mine": CAMVID},
    ),
}


def prepare(folder: Path) -> None:
    """Everything in ``folder`` under the names that the pages have for it, but for what they train."""
    image, mask = scene(1)
    for name in ("street.jpg", "street.png", "photo.jpg", "aerial.tif", "holiday/beach.jpg"):
        write(folder / name, image)
    write(folder / "street_mask.png", mask)
    (folder / "list.txt").write_text("street.jpg\nholiday\n")
    write_clip(folder / "drive.mp4", image)
    for root in ("ROOT", "PATH/TO/CamVid"):
        write_camvid(folder / root)
    cities = {"train": "aachen_000000_000019", "val": "munster_000000_000019", "test": "berlin_000000_000019"}
    for root in ("ROOT", "PATH/TO/cityscapes"):
        for split, name in cities.items():
            write_root(folder / root, [name, name.replace("19", "20")], split, masks=split != "test")
        # all splits have the same random pictures there, which no data set should have
        for seed, image in enumerate(sorted((folder / root).glob("leftImg8bit/*/*/*.png"))):
            write(image, scene(20 + seed)[0][:48])
    for name in ("munster_000000_000019", "munster_000000_000020"):
        write(folder / "DIR" / f"{name}.png", np.zeros((48, 80), np.uint8))
    write_mydata(folder / "mydata")
    write_survey(folder / "survey")
    write_coco(folder / "my_export", [polygon(FIELD)])
    (folder / "PATH/TO/ddsm-zoo").symlink_to(ROOT, target_is_directory=True)
    shutil.copytree(ROOT / "benchmarks", folder / "benchmarks", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "docs").mkdir()
    shutil.copy(ROOT / "docs/results.md", folder / "docs")
    (folder / RECIPES).mkdir()
    for name in list_recipes():
        short = shortened(find_recipe(name).read_text(encoding="utf-8"))
        (folder / RECIPES / f"{name}.toml").write_text(short, encoding="utf-8")
    torch.save(timm.create_model("test_resnet").state_dict(), folder / "upernet_r50.pth")
    write_runs(folder, {"trained": CAMVID, "renamed": LabelSpace.from_names([name[::-1] for name in CAMVID.names])})


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A rendered street of 60 x 80 pixels and its class ids."""
    image, mask = render_scene(seed)
    return np.ascontiguousarray(image[::6, ::6]), np.ascontiguousarray(mask[::6, ::6])


def write_camvid(root: Path) -> None:
    for number in range(6):
        split = "train" if number < 4 else "val"
        image, mask = scene(number)
        write(root / split / f"{number}.png", image)
        write(root / f"{split}annot" / f"{number}.png", np.where(mask == 255, 11, mask).astype(np.uint8))


def write_mydata(root: Path) -> None:
    for number in range(6):
        split = "train" if number < 4 else "val"
        image, mask = scene(10 + number)
        write(root / "images" / split / f"{number}.jpg", image)
        write(root / "masks" / split / f"{number}.png", (mask % 3).astype(np.uint8))
    write_labels(root, names=["road", "car", "other"])


def write_survey(root: Path) -> None:
    """The data set of docs/extending.md, with a class number or 0 in each quarter of its masks."""
    for number in range(4):
        write(root / "pictures" / f"{number}.png", scene(30 + number)[0])
        write(root / "regions" / f"{number}.png", np.kron([[0, 10], [20, 40]], np.ones((30, 40))).astype(np.uint8))
    (root / "train.txt").write_text("0 1 2")
    (root / "val.txt").write_text("3")


def write_clip(path: Path, image: np.ndarray) -> None:
    """Three times the same picture, ten a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width = image.shape[:2]
        stream.pix_fmt = "yuv444p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def shortened(recipe: str) -> str:
    for name, value in SHORT.items():
        recipe, found = re.subn(rf"^{name} = .*$", f"{name} = {value}", recipe, flags=re.MULTILINE)
        recipe = recipe if found else f"{name} = {value}\n{recipe}"
    return recipe


@cache
def trained(labels: LabelSpace, seed: int) -> Segmenter:
    """A tiny model that says what its classes are."""
    torch.manual_seed(seed)
    model = ddsm_zoo.create_model("uper_ddsm_tiny", num_classes=len(labels))
    describe_weights(model, WeightsSpec(uri="file:model.safetensors", dataset="streets", labels=labels))
    return model


def write_runs(folder: Path, runs: Mapping[str, LabelSpace]) -> None:
    """The folders of these runs, as ``ddsm-zoo train`` leaves them."""
    for seed, (name, labels) in enumerate(runs.items()):
        ddsm_zoo.save_pretrained(trained(labels, seed), folder / "runs" / name / "best")


@cache
def imagenet_weights(name: str) -> bytes:
    return safetensors.torch.save(timm.create_model(name).state_dict())


@cache
def saved_files() -> Mapping[str, bytes]:
    return pack(trained(CAMVID, 0))


def publish(server: HubServer) -> None:
    """ImageNet weights of tiny backbones, and a private model with a branch."""
    for name in IMAGENET:
        server.publish(f"timm/{name}", {"model.safetensors": imagenet_weights(name)})
    server.publish("ORG/my-model", saved_files(), "v1")
    server.private.add("ORG/my-model")
