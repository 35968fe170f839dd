"""Errors that a user can cause: each has a kind that docs/troubleshooting.md explains, and one form."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from PIL import Image

import ddsm_zoo
from ddsm_zoo import Predictor, create_model
from ddsm_zoo.demo.page import listen
from ddsm_zoo.errors import KINDS, SECTIONS, UserError
from ddsm_zoo.explain.explain import explain
from ddsm_zoo.labels import CAMVID
from ddsm_zoo.zoo.convert import convert_weights
from tests.support.command_line import run_command
from tests.support.pages import PAGES, ROOT

PAGE = PAGES["docs/troubleshooting.md"].read_text(encoding="utf-8")
Said = tuple[str, str]  # the line without its kind, and the kind


def line_of(*arguments: str) -> Said:
    """The only line of an error of ``ddsm-zoo ARGUMENTS``."""
    result = run_command(*arguments, fails=1)
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
    match = re.fullmatch(r"error: (?P<text>.+) \[(?P<kind>[a-z-]+)\]", line)
    assert match, line
    return match["text"], match["kind"]


def predict(*options: str, model: str = "local-dir:runs/trained/best") -> Said:
    return line_of("predict", "street.jpg", "--model", model, *options)


def evaluate(data: str, *options: str, model: str = "local-dir:runs/trained/best") -> Said:
    return line_of("evaluate", "--data", data, "--model", model, *options)


def train(*options: str) -> Said:
    return line_of("train", "-r", "tiny_scenes", "-d", "folder:mydata", "-o", "runs/new", *options)


def raised(call: Callable[[], object]) -> Said:
    with pytest.raises(UserError) as error:
        call()
    assert isinstance(error.value, (ValueError, LookupError, TypeError))  # what callers may catch
    return str(error.value), error.value.kind


def offline() -> Said:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        return predict(model="hf-hub:ORG/elsewhere")


def too_large() -> Said:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        return predict()


def broken() -> Said:
    model = create_model("uper_tiny", labels=CAMVID)
    torch.nn.init.constant_(model.classifier.bias, torch.nan)
    return raised(lambda: Predictor(model)("street.jpg"))


def out_of_memory() -> Said:
    predictor = Predictor(create_model("uper_tiny"))
    predictor.predict = lambda image: torch.empty(2**58)  # no machine has the addresses
    return raised(lambda: predictor("street.jpg"))


def taken() -> Said:
    with listen("127.0.0.1", 0) as listener:
        return line_of("demo", "--port", str(listener.getsockname()[1]))


def begun() -> Said:
    run_command("train", "-r", "tiny_scenes", "-d", "folder:mydata", "-o", "runs/new", "--no-pretrained")
    return train("--no-pretrained")


def other_recipe() -> Said:
    begun()
    return train("--no-pretrained", "--resume", "--set", "lr=0.1")


def written(name: str) -> str:
    Path(name).touch()
    return name


def a_page_of_text() -> Said:
    Path("street.jpg").write_text("no picture")
    return predict()


def without_labels() -> Said:
    Path("mydata/labels.json").unlink()
    return evaluate("folder:mydata")


def without_a_mask() -> Said:
    next(Path("mydata/masks/val").iterdir()).unlink()
    return evaluate("folder:mydata")


def other_weights() -> object:
    return convert_weights(create_model("uper_tiny"), timm.create_model("resnet10t").state_dict())


def explain_pixel(at: str) -> Said:
    return line_of("explain", "street.jpg", "--at", at, "--model", "local-dir:runs/trained/best")


# What a user does, the kind of the error, and the value that its line repeats
SCENARIOS: list[tuple[Callable[[], Said], str, str]] = [
    (lambda: predict(model="uper_dsm_r50"), "unknown-model", "uper_dsm_r50"),
    (lambda: raised(lambda: create_model("uper_ddsm")), "no-backbone", "uper_ddsm"),
    (lambda: predict(model="runs/trained/best"), "unknown-model", "runs/trained/best"),
    (lambda: predict(model="uper_ddsm_tiny"), "no-task-weights", "uper_ddsm_tiny"),
    (lambda: predict(model="uper_ddsm_r50_cityscapes"), "weights-not-published", "uper_ddsm_r50_cityscapes"),
    (lambda: predict(model="hf-hub:nobody"), "address", "nobody"),
    (lambda: raised(lambda: create_model("uper_tiny", widht=16)), "unknown-option", "widht"),
    (lambda: raised(lambda: create_model("uper", backbone="test_vit")), "backbone-levels", "test_vit"),
    (lambda: raised(other_weights), "weights-mismatch", "tensors"),
    (
        lambda: raised(lambda: ddsm_zoo.save_pretrained(create_model("uper_tiny").fuse(), "fused")),
        "fused-model",
        "fused",
    ),
    (offline, "hub-offline", "ORG/elsewhere"),
    (lambda: predict(model="hf-hub:ORG/elsewhere"), "hub-missing", "ORG/elsewhere"),
    (lambda: predict(model="hf-hub:ORG/my-model@v7"), "hub-revision", "v7"),
    (
        lambda: line_of("predict", "nowhere.jpg", "--model", "local-dir:runs/trained/best"),
        "missing-file",
        "nowhere.jpg",
    ),
    (a_page_of_text, "image-format", "street.jpg"),
    (too_large, "image-too-large", "street.jpg"),
    (out_of_memory, "out-of-memory", "80"),
    (lambda: predict("--tile", "auto", "--memory", "1MB"), "memory-limit", "--memory"),
    (lambda: raised(lambda: Predictor(create_model("uper_tiny", in_chans=4))), "channels", "4 channels"),
    (lambda: predict("--device", "cuda:99"), "device", "cuda:99"),
    (broken, "nan-scores", "NaN"),
    (lambda: explain_pixel("80,0"), "pixel-outside", "80,0"),
    (lambda: explain_pixel("80"), "argument", "'80'"),
    (lambda: raised(lambda: explain(create_model("uper_tiny"), "street.jpg", (0, 0))), "no-sampling", "'none'"),
    (lambda: line_of("export", "local-dir:runs/trained/best", "-o", "model"), "file-suffix", "model"),
    (taken, "port", "127.0.0.1"),
    (lambda: line_of("--plugin", "mine.py", "list"), "plugin", "mine.py"),
    (lambda: line_of("--plugin", "nobodys", "list"), "plugin", "nobodys"),
    (lambda: evaluate("mydata"), "unknown-data", "mydata"),
    (lambda: evaluate("folder:nowhere"), "missing-folder", "nowhere"),
    (without_labels, "missing-labels", "labels.json"),
    (lambda: evaluate("folder:mydata", "--split", "test"), "missing-split", "'test'"),
    (without_a_mask, "missing-mask", "mydata"),
    (lambda: evaluate("folder:mydata"), "classes-differ", "classes"),
    (lambda: evaluate("camvid:ROOT", model="local-dir:runs/renamed/best"), "classes-differ", "class 0"),
    (lambda: line_of("train", "-r", "finetun", "-d", "folder:mydata", "-o", "runs/new"), "unknown-recipe", "finetun"),
    (lambda: line_of("recipes", "--copy", "finetune", "--to", written("mine.toml")), "cannot-write", "mine.toml"),
    (lambda: line_of("train", "-r", "mine.toml", "-d", "folder:mydata", "-o", "runs/new"), "missing-file", "mine.toml"),
    (lambda: train("--set", "epoch=3"), "unknown-field", "epoch"),
    (lambda: train("--set", "epochs=no"), "config", "epochs"),
    (begun, "run-exists", "runs/new"),
    (other_recipe, "other-recipe", "lr"),
    (lambda: train("--no-pretrained", "--set", "frozen_norms=all"), "frozen-layers", "frozen_norms"),
]
# A line says what was expected, or what to do
ADVICE = re.compile(
    r"\b(expected|did you mean|use|pass|choose|check|train|give|take|save|run|unset|raise|cut|resume|read as|"
    r"others with)\b"
)


@pytest.mark.parametrize(("fails", "kind", "value"), SCENARIOS, ids=[f"{kind}-{value}" for _, kind, value in SCENARIOS])
def test_an_error_has_a_kind_and_says_what_came_and_what_to_do(
    fails: Callable[[], Said], kind: str, value: str, here: Path
) -> None:
    line, said = fails()
    assert said == kind
    assert value in line
    assert ADVICE.search(line), line
    assert line.isprintable()
    assert "Traceback" not in line


def test_the_page_has_each_kind_once_with_its_meaning() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| (.+) \|$", PAGE, re.MULTILINE)
    assert rows == list(KINDS.items()), "run `make table`"
    assert re.findall(r"^## (.+)$", PAGE, re.MULTILINE) == list(SECTIONS)
    assert sum(map(len, SECTIONS.values())) == len(KINDS)


def nodes(*, scenes: bool = False) -> Iterator[tuple[str, ast.AST]]:
    """Each node of the package's code with its file. Scenes take no input from users."""
    for path in sorted((ROOT / "ddsm_zoo").rglob("*.py")):
        if scenes or "scenes" not in path.parts:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                yield path.relative_to(ROOT).as_posix(), node


def texts(node: ast.AST) -> set[str]:
    """Texts that an expression can be."""
    if isinstance(node, ast.IfExp):
        return texts(node.body) | texts(node.orelse)
    return {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()


def kind_of_class(node: ast.ClassDef) -> set[str]:
    lines = [line for line in node.body if isinstance(line, (ast.Assign, ast.AnnAssign)) and line.value is not None]
    return {
        text
        for line in lines
        for target in (line.targets if isinstance(line, ast.Assign) else [line.target])
        if ast.unparse(target) == "kind"
        for text in texts(line.value)
    }


def used_kinds() -> set[str]:
    """Every kind that the code gives an error, and those of the findings of check-data that refuse data."""
    kinds = set()
    for path, node in nodes(scenes=True):
        if isinstance(node, ast.ClassDef) and "UserError" in map(ast.unparse, [ast.Name(node.name), *node.bases]):
            own = kind_of_class(node)
            assert own, f"{path}: {node.name} has no kind"
            kinds |= own
        elif isinstance(node, ast.Call) and re.search(r"(Error|Error\.of|Diverged)$", ast.unparse(node.func)):
            kinds |= {text for word in node.keywords if word.arg == "kind" for text in texts(word.value)}
        elif path.endswith("hub/faults.py"):  # a table from the Hub's answers to kinds
            kinds |= {text for text in texts(node) if re.fullmatch("hub-[a-z]+", text)}
    findings = re.search(
        r"^### Errors$(.+?)^### ", PAGES["docs/data.md"].read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    assert findings
    rows = re.findall(r"^\| (`.+?) \|", findings[1], re.MULTILINE)
    return kinds | {kind for row in rows for kind in re.findall("`([a-z-]+)`", row)}


def test_each_kind_is_used_and_explained() -> None:
    assert used_kinds() == set(KINDS)


def test_what_a_user_can_cause_is_raised_with_facts() -> None:
    bare = {"ValueError", "TypeError", "LookupError", "KeyError", "FileNotFoundError"}
    found = [
        f"{path}:{node.lineno}"
        for path, node in nodes()
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and ast.unparse(node.exc.func) in bare
    ]
    assert found == []
