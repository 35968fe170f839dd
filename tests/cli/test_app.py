from __future__ import annotations

import dataclasses
import json
import re
import resource
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from typer.testing import CliRunner

import ddsm_zoo
from ddsm_zoo.cli import app
from ddsm_zoo.cli.models import parse_size
from ddsm_zoo.data.scenes.render import render_scene
from ddsm_zoo.labels import CAMVID
from ddsm_zoo.utils.files import sha256_of
from tests.support.command_line import run_command

Run = Callable[..., Any]
RECIPE = """
model = "uper_ddsm_tiny"
epochs = 1
batch_size = 2
crop_size = [32, 32]
workers = 0
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a saved model of CamVid's classes with random weights."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    model = ddsm_zoo.create_model("uper_ddsm_tiny", num_classes=len(CAMVID))
    model.provenance = dataclasses.replace(model.provenance, labels=CAMVID)
    ddsm_zoo.save_pretrained(model, folder)
    return f"local-dir:{folder}"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call the command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return run_command


def write_scene(path: Path, size: tuple[int, int] = (24, 32)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(render_scene(0, size)[0]).save(path)
    return path


def write_folder_dataset(root: Path, *more_names: str) -> None:
    """Images of two halves, the classes "left" and "right"; further classes never occur."""
    mask = np.zeros((32, 48), np.uint8)
    mask[:, 24:] = 1
    for split, brightness in (("train", 20), ("val", 25)):  # no picture is in both
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for index in range(4):
            pixels = np.repeat((mask * 150 + brightness * (index + 1))[..., None], 3, 2).astype(np.uint8)
            Image.fromarray(pixels).save(root / "images" / split / f"{index}.png")
            Image.fromarray(mask).save(root / "masks" / split / f"{index}.png")
    (root / "labels.json").write_text(json.dumps({"names": ["left", "right", *more_names]}))


def test_help_teaches_and_loads_no_torch() -> None:
    call = "cli.app(['predict', '--help'], standalone_mode=False)"
    code = f"import sys; from ddsm_zoo import cli; {call}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ddsm-zoo predict street.jpg" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"


def test_help_shows_no_value_for_flags_and_wraps_paragraphs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for command in ("train", "predict"):
        assert "bool" not in run(command, "--help").stdout
    assert "on val; use it as --model local-dir:DIR/best" in run("train", "--help").stdout


def test_version(run: Run) -> None:
    assert run("--version").stdout.strip() == ddsm_zoo.__version__


@pytest.mark.parametrize(
    "arguments", [["--nonsense"], ["predict"], ["predict", "x.png", "--modle", "y"], ["frobnicate"]]
)
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "Usage" in result.stderr


def test_list(run: Run) -> None:
    names = run("list", "uper_ddsm_r*").stdout.split()
    assert names == ddsm_zoo.list_models("uper_ddsm_r*")
    assert json.loads(run("list", "uper_ddsm_r*", "--json", "-").stdout) == names
    assert "zzz" in run("list", "zzz*", fails=1).stderr


def test_info_of_the_papers_model_is_within_its_figures(run: Run) -> None:
    figures = json.loads(run("info", "uper_ddsm_r101_cityscapes", "--size", "1024", "--json", "-").stdout)
    assert figures["params"] <= 51.8e6
    assert figures["multiply_adds"] <= 367.5e9
    assert figures["config"]["backbone"] == "resnet101s.gluon_in1k"


def test_info_table_and_file(run: Run, tmp_path: Path, tiny: str) -> None:
    assert "test_resnet" in run("info", "uper_ddsm_tiny", "--size", "64").stdout
    assert run("info", tiny, "--size", "32x64", "--json", "info.json").stdout
    figures = json.loads((tmp_path / "info.json").read_text())
    assert figures["size"] == [32, 64]
    assert figures["config"]["num_classes"] == 11


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["uper_ddsm_r11"], "did you mean"),
        (["uper_ddsm_tiny", "--size", "0"], "size is '0'"),
        (["uper_ddsm_tiny", "--size", "big"], "size is 'big'"),
        (["uper_ddsm_tiny", "--json", "/dev/null/x.json"], "cannot write"),
        (["local-dir:nowhere"], "the folder nowhere does not exist"),
    ],
)
def test_info_of_what_cannot_be(run: Run, arguments: list[str], message: str) -> None:
    assert message in run("info", *arguments, fails=1).stderr


def test_parse_size() -> None:
    assert parse_size("512") == (512, 512)
    assert parse_size("512X1024") == (512, 1024)


def test_predict_writes_three_pictures_and_a_table(run: Run, tmp_path: Path, tiny: str) -> None:
    write_scene(tmp_path / "street.png")
    result = run("predict", "street.png", "--model", tiny, "-o", "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"street_ids.png", "street_color.png", "street_overlay.png"}
    ids = np.asarray(Image.open(tmp_path / "out" / "street_ids.png"))
    assert ids.shape == (24, 32)
    assert ids.max() < 11
    shown = {CAMVID.names[index] for index in np.unique(ids)}
    assert shown <= set(result.stdout.split())


def test_predict_json_is_all_there_is_on_stdout(run: Run, tmp_path: Path, tiny: str) -> None:
    write_scene(tmp_path / "street.png")
    figures = json.loads(run("predict", "street.png", "--model", tiny, "--json", "-").stdout)
    (image,) = figures["images"]
    assert image["size"] == [24, 32]
    assert sum(image["shares"].values()) == pytest.approx(1.0)
    assert all(Path(path).is_file() for path in image["files"].values())
    assert figures["failures"] == []


def test_predict_folder_and_equal_stems(run: Run, tmp_path: Path, tiny: str) -> None:
    images = ["a/street.png", "a/inner/street.jpg", "a/STREET.bmp", "a/notes.txt", "a/deep/er/x.png", "b/street.png"]
    for name in images:
        write_scene(tmp_path / name) if not name.endswith("txt") else (tmp_path / name).write_text("no image")
    arguments = ["predict", "a", "b/street.png", "a/street.png", "--model", tiny, "-o", "a/out", "--json", "-"]
    first = json.loads(run(*arguments).stdout)["images"]
    assert {entry["image"] for entry in first} == {name for name in images if not name.endswith("txt")}
    written = [path.casefold() for entry in first for path in entry["files"].values()]
    assert len(set(written)) == 3 * len(first)
    # what was written is not taken for input
    assert json.loads(run(*arguments, "--overwrite").stdout)["images"] == first
    third = json.loads(run(*arguments).stdout)["images"]
    assert [entry["image"] for entry in third] == [entry["image"] for entry in first]
    assert {Path(path).parent.as_posix() for entry in third for path in entry["files"].values()} == {"a/out-2"}


def test_predict_goes_on_after_bad_files(run: Run, tmp_path: Path, tiny: str) -> None:
    good = write_scene(tmp_path / "good.png")
    write_scene(tmp_path / "last.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:300])
    (tmp_path / "nothing").mkdir()
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    Image.new("L", (4000, 1)).save(tmp_path / "line.png")
    names = ["good", "empty", "text", "cut", "missing", "dot", "line", "last"]
    result = run(
        "predict", *(f"{name}.png" for name in names), "nothing", "-m", tiny, "-o", "out", "--json", "f.json", fails=5
    )
    figures = json.loads((tmp_path / "f.json").read_text())
    assert [entry["image"] for entry in figures["images"]] == ["good.png", "dot.png", "line.png", "last.png"]
    assert {Path(entry["image"]).stem for entry in figures["failures"]} == {
        "empty",
        "text",
        "cut",
        "missing",
        "nothing",
    }
    assert len(list((tmp_path / "out").iterdir())) == 12
    for name in ("empty", "text", "cut", "missing", "nothing"):
        assert name in result.stderr


def test_predict_with_a_full_disk(run: Run, tmp_path: Path, tiny: str) -> None:
    write_scene(tmp_path / "street.png")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        result = run("predict", "street.png", "-m", tiny, "-o", "out", fails=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot write out/street_" in result.stderr
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "street.png"], "cannot write street.png"),
        (["-o", "street.png/deeper"], "cannot write street.png/deeper"),
        (["-o", "/proc/out"], "cannot write /proc/out"),
        (["--json", "."], "cannot write ."),
        (["--json", "street.png/x.json"], "cannot write street.png"),
        (["-m", "no_such_model"], "unknown model 'no_such_model'"),
        (["-m", "uper_ddsm_r101_cityscape"], "uper_ddsm_r101_cityscapes"),
        (["-m", "local-dir:nowhere"], "nowhere"),
        (["--device", "gpu"], "device 'gpu'"),
    ],
)
def test_predict_with_what_cannot_be(run: Run, tmp_path: Path, options: list[str], message: str) -> None:
    write_scene(tmp_path / "street.png")
    assert message in run("predict", "street.png", *options, fails=1).stderr
    assert [path.name for path in tmp_path.iterdir()] == ["street.png"]


def test_unwritable_folder_is_told_before_a_model_is_looked_for(run: Run, tmp_path: Path) -> None:
    write_scene(tmp_path / "street.png")
    assert "cannot write" in run("predict", "street.png", "-o", "street.png", "-m", "no_such_model", fails=1).stderr


@pytest.mark.parametrize("damage", ["truncated", "not safetensors", "other shapes", "nan"])
def test_damaged_weights(run: Run, tmp_path: Path, damage: str) -> None:
    write_scene(tmp_path / "street.png")
    ddsm_zoo.save_pretrained(ddsm_zoo.create_model("uper_tiny"), tmp_path / "model")
    weights, config = tmp_path / "model" / "model.safetensors", tmp_path / "model" / "config.json"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif damage == "not safetensors":
        weights.write_bytes(b"PK\x03\x04 a pickle")
    elif damage == "other shapes":
        config.write_text(config.read_text().replace('"width": 32', '"width": 64'))
    else:
        before = sha256_of(weights)
        tensors = safetensors.torch.load_file(weights)
        tensors["classifier.bias"].fill_(torch.nan)
        safetensors.torch.save_file(tensors, weights)
        config.write_text(config.read_text().replace(before, sha256_of(weights)))
    run("predict", "street.png", "-m", "local-dir:model", fails=1)
    assert not (tmp_path / "predictions").exists()


def test_evaluate_table_and_json(run: Run, tmp_path: Path, tiny: str) -> None:
    write = ["evaluate", "--model", tiny, "--data", "scenes:1"]
    result = json.loads(run(*write, "--json", "-").stdout)
    assert 0 <= result["miou"] <= 1
    assert tuple(result["iou"]) == CAMVID.names
    assert "mIoU" in run(*write, "--split", "val").stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "camvid:nowhere"], "nowhere"),
        (["--data", "camvit:."], "did you mean camvid"),
        (["--data", "scenes:none"], "scenes:none"),
        (["--data", "scenes:1", "--split", "tset"], "tset"),
        (["--data", "folder:data"], "predicts 11 classes and the data has 2"),
        (["--data", "scenes:1", "--json", "none/../data"], "cannot write"),
    ],
)
def test_evaluate_with_what_cannot_be(run: Run, tmp_path: Path, tiny: str, options: list[str], message: str) -> None:
    write_folder_dataset(tmp_path / "data")
    assert message in run("evaluate", "--model", tiny, *options, fails=1).stderr


def test_train_a_folder_dataset_then_use_what_came_out(run: Run, tmp_path: Path) -> None:
    write_folder_dataset(tmp_path / "data")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    train = ["train", "--recipe", "recipe.toml", "--data", "folder:data", "--out", "run", "--no-pretrained"]
    summary = json.loads(run(*train, "--json", "-").stdout)
    assert summary["epochs"] == 1
    evaluated = json.loads(run("evaluate", "-m", "local-dir:run/best", "-d", "folder:data", "--json", "-").stdout)
    assert tuple(evaluated["iou"]) == ("left", "right")
    assert evaluated["miou"] == pytest.approx(summary["best_miou"], abs=0.01)
    assert evaluated["weights"]["sha256"]
    predict = ["predict", "data/images/val/0.png", "-m", "local-dir:run/best", "--json", "-"]
    assert set(json.loads(run(*predict).stdout)["images"][0]["shares"]) == {"left", "right"}
    assert "resume" in run(*train, fails=1).stderr
    assert json.loads(run(*train, "--resume", "--json", "-").stdout)["epochs"] == 1
    # Other classes than the ones it was trained on: the weights are kept, the classifier is new.
    write_folder_dataset(tmp_path / "more", "middle")
    finetune = ["train", "--recipe", "recipe.toml", "--data", "folder:more", "--out", "again"]
    assert "epoch 1" in run(*finetune, "--model", "local-dir:run/best", "--pretrained").stdout
    assert ddsm_zoo.create_model("local-dir:again/best", pretrained=True).num_classes == 3


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        (None, [], "no recipe at recipe.toml"),
        ("model = ", [], "not valid TOML"),
        (RECIPE + "epoch = 3", [], "'epoch'"),
        (RECIPE, ["--epochs", "0"], "epochs is 0"),
        (RECIPE, ["--model", "uper_dsm_tiny"], "did you mean uper_ddsm_tiny"),
        (RECIPE + "[overrides]\npixel = 9", [], "did you mean 'pixels'"),
        (RECIPE, ["--data", "folder:nowhere"], "nowhere"),
        (RECIPE, ["--out", "recipe.toml"], "cannot write recipe.toml"),
    ],
)
def test_train_with_what_cannot_be(
    run: Run, tmp_path: Path, recipe: str | None, options: list[str], message: str
) -> None:
    if recipe is not None:
        (tmp_path / "recipe.toml").write_text(recipe)
    before = set(tmp_path.iterdir())
    given = ["--recipe", "recipe.toml", "--data", "scenes:2", "--out", "run", "--no-pretrained"]
    assert message in run("train", *given, *options, fails=1).stderr
    assert set(tmp_path.iterdir()) == before


def test_interrupted_training_is_saved_and_loadable(tmp_path: Path) -> None:
    write_folder_dataset(tmp_path / "data")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    command = [sys.executable, "-m", "ddsm_zoo", "train", "-r", "recipe.toml", "-d", "folder:data", "-o", "run"]
    command += ["--no-pretrained", "--epochs", "500"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while not (tmp_path / "run" / "last" / "state.pt").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "--resume" in errors
    assert ddsm_zoo.create_model(f"local-dir:{tmp_path}/run/best", pretrained=True).num_classes == 2


def test_save_then_load(run: Run, tmp_path: Path, tiny: str) -> None:
    run("save", tiny, "copy")
    original, copy = (ddsm_zoo.create_model(name, pretrained=True) for name in (tiny, f"local-dir:{tmp_path}/copy"))
    assert all(
        torch.equal(a, b) for a, b in zip(original.state_dict().values(), copy.state_dict().values(), strict=True)
    )
    assert copy.pretrained_cfg["labels"]["names"] == original.pretrained_cfg["labels"]["names"]
    (tmp_path / "file").touch()
    assert "cannot write" in run("save", tiny, "file", fails=1).stderr


def test_ctrl_c_ends_with_a_line(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ddsm_zoo.zoo.registry.list_models", interrupt)
    monkeypatch.setattr("ddsm_zoo.zoo.registry.find", interrupt)
    result = CliRunner().invoke(app, ["info", "uper_tiny"])
    assert result.exit_code == 130
    assert result.stderr == "interrupted\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyError("width"), r"KeyError in ddsm_zoo.cli.models\.py, line \d+: 'width' \(DDSM_ZOO_DEBUG=1 shows"),
        (RuntimeError("CUDA error: bad\nfor debugging"), r"RuntimeError in .*: CUDA error: bad for debugging \(DDSM"),
        (AssertionError(), r"AssertionError in .*DDSM_ZOO_DEBUG=1"),
        (zipfile.BadZipFile("File is not a zip file"), "BadZipFile in .*: File is not a zip file"),
        (Image.DecompressionBombError("too many pixels"), "DecompressionBombError in .*: too many pixels"),
        (MemoryError(), "there is not enough memory: choose"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "there is not enough memory: choose"),
        (torch.OutOfMemoryError("CUDA out of memory."), "there is not enough memory: choose"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "there is not enough memory"),
        (ImportError("libcudart.so.12: cannot open shared object file"), "ImportError in .*: libcudart.so.12: cannot"),
        (OSError(28, "No space left on device", "x"), r"\[Errno 28\] No space left on device: 'x'"),
    ],
)
def test_whatever_goes_wrong_is_one_line_and_a_traceback_on_request(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("ddsm_zoo.zoo.sources.look_up", fail)
    (said,) = run("info", "uper_tiny", fails=1).stderr.splitlines()
    assert re.match(f"error: {line}", said)
    monkeypatch.setenv("DDSM_ZOO_DEBUG", "1")
    assert CliRunner().invoke(app, ["info", "uper_tiny"]).exception is error


@pytest.mark.parametrize(
    "words",
    [
        ("predict", "street.png", "-o", ""),
        ("predict", "street.png", "--out="),
        ("predict", "street.png", "--out", " "),
        ("explain", "street.png", "--at", "1,1", "-o", ""),
        ("evaluate", "--data", "scenes:1", "--out", ""),
        ("evaluate", "--data", "scenes:1", "--json", ""),
        ("train", "--data", "folder:data", "--out", ""),
        ("export", "uper_tiny", "-o", ""),
        ("save", "uper_tiny", ""),
        ("import-data", "coco", "export", ""),
        ("check-data", ""),
    ],
    ids=" ".join,
)
def test_an_empty_value_is_not_the_current_folder(run: Run, tmp_path: Path, words: tuple[str, ...]) -> None:
    write_scene(tmp_path / "street.png")
    option = words[-1].rstrip("=") or (words[-2] if words[-2].startswith("-") else "")
    named = f" for {option}" if option.strip() else ""
    (said,) = run(*words, fails=1).stderr.splitlines()
    assert said.startswith(f"error: got an empty value{named or ''}")
    assert "is a variable of the shell unset?" in said
    assert [path.name for path in tmp_path.iterdir()] == ["street.png"]


def start(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ddsm_zoo", *arguments]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, **options)


def test_output_to_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = start("list", stdout=full)
    assert (done.returncode, done.stderr) == (2, "error: [Errno 28] No space left on device\n")


def test_too_little_memory_to_load_torch_is_one_line(tmp_path: Path) -> None:
    image = write_scene(tmp_path / "street.png")
    limit = 300 * 2**20
    done = start(
        "predict",
        str(image),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch("error: there is not enough memory: .*\n", done.stderr)
