"""Each line that docs/troubleshooting.md explains is one that the code says."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from PIL import Image

import ddsm_zoo
from ddsm_zoo import Predictor, create_model
from ddsm_zoo.demo.page import listen
from ddsm_zoo.explain.explain import explain
from ddsm_zoo.labels import CAMVID
from ddsm_zoo.zoo.convert import convert_weights
from tests.support.command_line import run_command
from tests.support.pages import PAGES, ROOT

PAGE = PAGES["docs/troubleshooting.md"].read_text(encoding="utf-8")
LINES = [match["line"] for match in re.finditer(r"^\| (?P<mark>`+)(?P<line>.+?) ?(?P=mark) \|", PAGE, re.MULTILINE)]


def line_of(*arguments: str) -> str:
    """What ``ddsm-zoo ARGUMENTS`` says when it fails."""
    result = run_command(*arguments, fails=1)
    return next(line.removeprefix("error: ") for line in result.stderr.splitlines() if line.startswith("error: "))


def predict(*options: str, model: str = "local-dir:runs/trained/best") -> str:
    return line_of("predict", "street.jpg", "--model", model, *options)


def evaluate(data: str, *options: str, model: str = "local-dir:runs/trained/best") -> str:
    return line_of("evaluate", "--data", data, "--model", model, *options)


def train(*options: str) -> str:
    return line_of("train", "-r", "tiny_scenes", "-d", "folder:mydata", "-o", "runs/new", *options)


def message_of(call: Callable[[], object]) -> str:
    with pytest.raises((ValueError, LookupError, TypeError)) as error:
        call()
    return str(error.value)


def offline() -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        return predict(model="hf-hub:ORG/elsewhere")


def too_large() -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        return predict()


def broken() -> str:
    model = create_model("uper_tiny", labels=CAMVID)
    torch.nn.init.constant_(model.classifier.bias, torch.nan)
    return message_of(lambda: Predictor(model)("street.jpg"))


def out_of_memory() -> str:
    predictor = Predictor(create_model("uper_tiny"))
    predictor.predict = lambda image: torch.empty(2**58)  # no machine has the addresses
    return message_of(lambda: predictor("street.jpg"))


def taken() -> str:
    with listen("127.0.0.1", 0) as listener:
        return line_of("demo", "--port", str(listener.getsockname()[1]))


def begun() -> str:
    run_command("train", "-r", "tiny_scenes", "-d", "folder:mydata", "-o", "runs/new", "--no-pretrained")
    return train("--no-pretrained")


def other_recipe() -> str:
    begun()
    return train("--no-pretrained", "--resume", "--set", "lr=0.1")


def written(name: str) -> str:
    Path(name).touch()
    return name


def a_page_of_text() -> str:
    Path("street.jpg").write_text("no picture")
    return predict()


def without_labels() -> str:
    Path("mydata/labels.json").unlink()
    return evaluate("folder:mydata")


def without_a_mask() -> str:
    next(Path("mydata/masks/val").iterdir()).unlink()
    return evaluate("folder:mydata")


SAID_WHEN: dict[str, Callable[[], str]] = {
    "unknown model": lambda: predict(model="uper_dsm_r50"),
    "... names no backbone": lambda: message_of(lambda: create_model("uper_ddsm")),
    "... names no model": lambda: predict(model="runs/trained/best"),
    "... is an architecture without": lambda: predict(model="uper_ddsm_tiny"),
    "the weights of": lambda: predict(model="uper_ddsm_r50_cityscapes"),
    "create_model() got": lambda: message_of(lambda: create_model("uper_tiny", widht=16)),
    "backbone ... has feature levels": lambda: message_of(lambda: create_model("uper", backbone="test_vit")),
    "... does not fit the model": lambda: message_of(
        lambda: convert_weights(create_model("uper_tiny"), timm.create_model("resnet10t").state_dict())
    ),
    "the model was fused": lambda: message_of(
        lambda: ddsm_zoo.save_pretrained(create_model("uper_tiny").fuse(), "fused")
    ),
    "cannot fetch ...: HF_HUB_OFFLINE": offline,
    "cannot fetch ...: no such repository": lambda: predict(model="hf-hub:ORG/elsewhere"),
    "cannot fetch ...: the repository has no such revision": lambda: predict(model="hf-hub:ORG/my-model@v7"),
    "no image file": lambda: line_of("predict", "nowhere.jpg", "--model", "local-dir:runs/trained/best"),
    "... is no image": a_page_of_text,
    "... is too large": too_large,
    "labelling a picture": out_of_memory,
    "the memory": lambda: predict("--tile", "auto", "--memory", "1MB"),
    "the model takes": lambda: message_of(lambda: Predictor(create_model("uper_tiny", in_chans=4))),
    "device": lambda: predict("--device", "cuda:99"),
    "the model gives NaN": broken,
    "the pixel": lambda: line_of("explain", "street.jpg", "--at", "80,0", "--model", "local-dir:runs/trained/best"),
    "... has the fusion": lambda: message_of(lambda: explain(create_model("uper_tiny"), "street.jpg", (0, 0))),
    "the file is called": lambda: line_of("export", "local-dir:runs/trained/best", "-o", "model"),
    "cannot listen": taken,
    "data set ... is unknown": lambda: evaluate("mydata"),
    "data set folder": lambda: evaluate("folder:nowhere"),
    "... is missing": without_labels,
    "... has no images": lambda: evaluate("folder:mydata", "--split", "test"),
    "... cannot be used": without_a_mask,
    "the model predicts": lambda: evaluate("folder:mydata"),
    "class ... is": lambda: evaluate("camvid:ROOT", model="local-dir:runs/renamed/best"),
    "unknown recipe": lambda: line_of("train", "-r", "finetun", "-d", "folder:mydata", "-o", "runs/new"),
    "cannot write ...: it exists": lambda: line_of("recipes", "--copy", "finetune", "--to", written("mine.toml")),
    "no recipe": lambda: line_of("train", "-r", "mine.toml", "-d", "folder:mydata", "-o", "runs/new"),
    "... has unknown field": lambda: train("--set", "epoch=3"),
    "... holds the state": begun,
    "... was made with another": other_recipe,
    "frozen_norms": lambda: train("--no-pretrained", "--set", "frozen_norms=all"),
}
# These need a machine without an extra, with too little memory or several processes, a server that is down, an exporter
# that errs, or luck
ONLY_READ = (
    "cannot fetch ...: the Hub cannot be reached",
    "... is another file",
    "videos need",
    "the exported model gives",
    "the exported model's logits",
    "training needs",
    "training on one crop",
    "batch_size",
    "... was made with other",
    "... is in use by",
    "shared memory",
    "the loading process",
    "cannot start",
    "...: training diverged",
)


def pattern(line: str) -> re.Pattern[str]:
    """The line with anything for its dots."""
    return re.compile(".+".join(map(re.escape, line.split("..."))) + ".*")


def the_line(beginning: str) -> str:
    (line,) = (line for line in LINES if line.startswith(beginning))
    return line


@pytest.mark.parametrize("beginning", SAID_WHEN)
def test_a_line_is_what_the_code_says(beginning: str, here: Path) -> None:
    assert pattern(the_line(beginning)).fullmatch(SAID_WHEN[beginning]())


@cache
def texts_of_the_code() -> list[str]:
    """Every text in the package, with three dots for what is filled in."""
    found = []
    for path in sorted((ROOT / "ddsm_zoo").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


@pytest.mark.parametrize("beginning", ONLY_READ)
def test_a_line_stands_in_the_code(beginning: str) -> None:
    line = the_line(beginning).removeprefix("cannot fetch ...: ")
    assert any(pattern(line).fullmatch(text) for text in texts_of_the_code()), line


def test_no_line_is_left_out() -> None:
    known = sorted(map(the_line, (*SAID_WHEN, *ONLY_READ)))
    assert known == sorted(LINES)
    assert len(LINES) == sum(line.startswith(("| `", "| ``")) for line in PAGE.splitlines())
