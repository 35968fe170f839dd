"""A single class all the way: data set, training, saved model, scores, prediction, export."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import ddsm_zoo
from ddsm_zoo.evaluation.evaluate import Request, score_model, score_predictions
from ddsm_zoo.inference.folder import predict_folder
from ddsm_zoo.models import Segmenter
from ddsm_zoo.training.recipe import Recipe
from ddsm_zoo.training.run import train
from ddsm_zoo.utils.plain_data import ConfigError
from ddsm_zoo.zoo.publishing import describe_weights
from tests.support.binary_set import blobs, write_binary_set
from tests.support.command_line import run_command
from tests.support.errors import raises

RECIPE = Recipe(
    model="uper_tiny", epochs=12, batch_size=2, crop_size=(48, 64), scale=(1.0, 1.0), workers=0,
    optimizer="adamw", lr=5e-3, dice=0.5, lovasz=0.1, class_weights="auto", sampling="balanced", validate_every=12,
)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_binary_set(tmp_path_factory.mktemp("binary"))


@pytest.fixture(scope="module")
def best(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the best weights of a run that took seconds."""
    out = tmp_path_factory.mktemp("run")
    summary = train(RECIPE, f"folder:{root}", out, pretrained=False)
    assert summary["best_miou"] > 0.75, summary  # a guess of all pixels scores 0.2
    return out / "best"


def iou_by_numpy(predicted: np.ndarray, actual: np.ndarray) -> float:
    return np.count_nonzero(predicted & actual) / np.count_nonzero(predicted | actual)


def test_iou_of_the_class_is_the_headline(root: Path, best: Path) -> None:
    predictor = ddsm_zoo.Predictor(f"local-dir:{best}")
    masks, trues = [], []
    for index in range(3):
        with Image.open(root / f"masks/val/{index}.png") as file:
            true = np.asarray(file)
        mask = predictor(root / f"images/val/{index}.png").mask
        masks.append(mask[true != 255] == 1)
        trues.append(true[true != 255] == 1)
    found, true = np.concatenate(masks), np.concatenate(trues)
    scores = ddsm_zoo.evaluate(f"local-dir:{best}", f"folder:{root}", boundary=True, bootstrap=20)
    assert scores["miou"] == pytest.approx(iou_by_numpy(found, true))
    assert scores["iou"] == pytest.approx({"background": iou_by_numpy(~found, ~true), "blob": scores["miou"]})
    assert scores["confusion"] == [
        [(~found & ~true).sum(), (found & ~true).sum()], [(~found & true).sum(), (found & true).sum()]
    ]  # fmt: skip
    assert scores["intervals"]["miou"] == scores["intervals"]["iou"]["blob"]
    assert scores["intervals"]["boundary_iou"][0] <= scores["boundary_iou"] == scores["boundary_iou_by_class"]["blob"]
    assert scores["boundary_f"]["present_only"]["mean"] == pytest.approx(scores["boundary_f_by_class"]["blob"])
    assert json.loads((best / "config.json").read_text())["pretrained_cfg"]["metrics"] == pytest.approx(
        {"iou (val)": 100 * scores["miou"]}
    )


def test_prediction_is_a_mask_of_background_and_class(root: Path, best: Path, tmp_path: Path) -> None:
    image, true = blobs(100)
    result = ddsm_zoo.Predictor(f"local-dir:{best}")(image)
    assert result.labels.names == ("background", "blob")
    assert set(np.unique(result.mask)) == {0, 1}
    assert iou_by_numpy(result.mask == 1, true == 1) > 0.7
    assert result.shares() == pytest.approx({"background": (result.mask == 0).mean(), "blob": result.mask.mean()})
    colors = np.asarray(result.color())
    assert (colors[result.mask == 0] == 0).all()
    assert (colors[result.mask == 1] == result.labels.palette[1]).all()
    overlay = np.asarray(result.overlay(legend=False))
    np.testing.assert_array_equal(overlay[result.mask == 0], image[result.mask == 0])

    # its own files, scored as a folder of predictions
    predictor = ddsm_zoo.Predictor(f"local-dir:{best}")
    assert all(each.error is None for each in predict_folder(predictor, root / "images/val", tmp_path))
    request = Request(data=f"folder:{root}")
    by_files, by_model = score_predictions(tmp_path, request), score_model(f"local-dir:{best}", request)
    assert by_files.figures()["confusion"] == by_model.figures()["confusion"]


@pytest.mark.parametrize("threshold", [0.1, 0.9])
def test_threshold_is_kept_with_the_weights(best: Path, tmp_path: Path, root: Path, threshold: float) -> None:
    model = ddsm_zoo.create_model(f"local-dir:{best}", pretrained=True)
    weights = model.provenance.weights
    assert weights is not None
    assert weights.threshold == 0.5
    describe_weights(model, dataclasses.replace(weights, threshold=threshold))
    ddsm_zoo.save_pretrained(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]["threshold"] == threshold
    assert f"threshold {threshold}" in (tmp_path / "README.md").read_text()

    image, _ = blobs(101)
    with torch.inference_mode():
        logits = model.eval()(ddsm_zoo.create_transform(ddsm_zoo.resolve_data_config(model))(image)[None])
    expected = 1 / (1 + np.exp(-logits[0, 0].double().numpy())) > threshold
    for predictor in (ddsm_zoo.Predictor(f"local-dir:{tmp_path}"), ddsm_zoo.Predictor(model, threshold=threshold)):
        assert (predictor(image).mask == expected).mean() > 0.999
    scores = ddsm_zoo.evaluate(f"local-dir:{tmp_path}", f"folder:{root}")
    assert scores["threshold"] == threshold
    assert scores == ddsm_zoo.evaluate(model, f"folder:{root}") | {key: scores[key] for key in ("model", "weights")}
    assert ddsm_zoo.evaluate(model, f"folder:{root}", threshold=0.5)["confusion"] != scores["confusion"]


class Beside(nn.Module):
    """Two logits (0, z) of the one logit z of a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        logits = self.model(image)
        return torch.cat([torch.zeros_like(logits), logits], 1)


@pytest.mark.parametrize("protocol", ["whole", "flip", "multi_scale"])
def test_one_logit_scores_like_two(root: Path, best: Path, protocol: str) -> None:
    model = ddsm_zoo.from_pretrained(best)
    options = {"protocol": protocol, "preprocess": ddsm_zoo.resolve_data_config(model)}
    one = ddsm_zoo.evaluate(model, f"folder:{root}", **options)
    two = ddsm_zoo.evaluate(Beside(model), f"folder:{root}", **options)
    assert one["confusion"] == two["confusion"]
    assert one["miou"] == two["miou"]


def as_two_names(root: Path, target: Path, *names: str) -> str:
    shutil.copytree(root, target)
    (target / "labels.json").write_text(json.dumps({"names": list(names)}))
    return f"folder:{target}"


def test_model_of_one_class_fits_data_of_two(root: Path, best: Path, tmp_path: Path) -> None:
    data = as_two_names(root, tmp_path / "two", "floor", "Blob")
    scores = ddsm_zoo.evaluate(f"local-dir:{best}", data)
    assert scores["miou"] == pytest.approx(sum(scores["iou"].values()) / 2)
    with raises(ValueError, kind="classes-differ", got="blob", expected="floor"):
        ddsm_zoo.evaluate(f"local-dir:{best}", as_two_names(root, tmp_path / "swapped", "blob", "floor"))


def test_confidence_is_the_probability_of_the_predicted_id(best: Path) -> None:
    image, _ = blobs(103)
    model = ddsm_zoo.from_pretrained(best)
    with torch.inference_mode():
        logits = model(ddsm_zoo.create_transform(ddsm_zoo.resolve_data_config(model))(image)[None])
    found = 1 / (1 + np.exp(-logits[0, 0].double().numpy()))
    for threshold in (0.2, 0.5):
        confidence = ddsm_zoo.Predictor(model, threshold=threshold)(image).confidence
        assert confidence == pytest.approx(np.where(found > threshold, found, 1 - found).mean(), abs=1e-4)


def refuse(model: Segmenter, root: Path, threshold: float) -> None:
    for call in (
        lambda: ddsm_zoo.Predictor(model, threshold=threshold),
        lambda: ddsm_zoo.evaluate(model, f"folder:{root}", threshold=threshold),
    ):
        with raises(ConfigError, kind="config", name="threshold") as error:
            call()
        assert error.value.got is threshold or error.value.got == threshold


def test_thresholds_that_cannot_be(root: Path, best: Path, tmp_path: Path) -> None:
    for value in (1.0, 0, -0.5, float("nan"), "0.5"):
        refuse(ddsm_zoo.from_pretrained(best), root, value)  # type: ignore[arg-type]  # what users may give
    two = as_two_names(root, tmp_path / "two", "floor", "blob")
    model = ddsm_zoo.create_model("uper_tiny", num_classes=2)
    refuse(model, Path(two.removeprefix("folder:")), 0.3)
    config = json.loads((best / "config.json").read_text())
    for threshold in (0, 1.5, "half"):
        shutil.copytree(best, tmp_path / "saved", dirs_exist_ok=True)
        config["pretrained_cfg"]["threshold"] = threshold
        (tmp_path / "saved/config.json").write_text(json.dumps(config))
        with raises(ConfigError, kind="config", got=threshold):
            ddsm_zoo.from_pretrained(tmp_path / "saved")


def test_a_file_of_ids_has_the_threshold(best: Path, root: Path, tmp_path: Path) -> None:
    """Of one size, because tracing for any size takes longer. The size rules out the option --data."""
    address, file = f"local-dir:{best}", tmp_path / "one.pt2"
    options = ("--size", 48, 64, "--images", root / "images/val", "--with-preprocess", "--argmax", "--threshold", 0.9)
    figures = json.loads(
        run_command("export", address, "--format", "torch", *options, "-o", file, "--json", "-").stdout
    )
    assert figures["agreement"][0]["argmax"] > 0.999
    metadata = figures["metadata"]
    assert (metadata["labels"], metadata["threshold"]) == ('["background", "blob"]', "0.9")
    image, _ = blobs(102)
    ids = torch.export.load(file).module()(torch.from_numpy(image)[None]).numpy()
    masks = {share: ddsm_zoo.Predictor(address, threshold=share)(image).mask for share in (0.5, 0.9)}
    assert (ids[0] == masks[0.9]).mean() > 0.999
    assert (ids[0] != masks[0.5]).any()


def test_the_command_line_takes_and_shows_the_threshold(best: Path, root: Path, tmp_path: Path) -> None:
    address, data = f"local-dir:{best}", f"folder:{root}"
    assert "threshold of the sigmoid" in run_command("info", address).stdout
    text = run_command("evaluate", "-m", address, "-d", data, "--threshold", "0.7").stdout
    assert "IoU of blob" in text
    assert "mIoU" not in text
    for name in ("Dice", "precision", "recall", "background"):
        assert name in text
    image = root / "images/val/0.png"
    run_command("predict", image, "-m", address, "-o", tmp_path, "--threshold", "0.7")
    with Image.open(tmp_path / "0_ids.png") as file:
        mask = np.asarray(file)
    np.testing.assert_array_equal(mask, ddsm_zoo.Predictor(address, threshold=0.7)(image).mask)
    run_command("predict", image, "-m", address, "-o", tmp_path, "--threshold", "7", fails=1)
    run_command("predict", image, "-o", tmp_path, "--threshold", "0.7", fails=1)
    run_command("evaluate", "--predictions", tmp_path, "-d", data, "--threshold", "0.7", fails=1)


def test_comparison_of_two_models_of_one_class(best: Path, root: Path) -> None:
    request = Request(data=f"folder:{root}")
    first, second = (
        score_model(f"local-dir:{best}", dataclasses.replace(request, threshold=share)) for share in (0.2, 0.8)
    )
    gain = second.gain_over(first, 10)
    assert gain["miou"] == pytest.approx(second.figures()["miou"] - first.figures()["miou"])
    assert gain["intervals"]["miou"] == gain["intervals"]["iou"]["blob"]


def test_the_bundled_model_becomes_one_of_one_class(root: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, model="uper_ddsm_lite0_camvid", epochs=1, images_per_epoch=2, validate_every=1)
    train(recipe, f"folder:{root}", tmp_path, pretrained=True)
    model = ddsm_zoo.from_pretrained(tmp_path / "best")
    assert (model.num_classes, model.provenance.labels.names) == (1, ("blob",))  # type: ignore[union-attr]


@pytest.mark.parametrize("threshold", [0.7, "auto"])
def test_the_recipe_sets_or_finds_the_threshold(root: Path, tmp_path: Path, threshold: float | str) -> None:
    recipe = dataclasses.replace(RECIPE, threshold=threshold, epochs=1, validate_every=1)
    summary = train(recipe, f"folder:{root}", tmp_path, pretrained=False)
    saved = json.loads((tmp_path / "best/config.json").read_text())["pretrained_cfg"]
    scores = ddsm_zoo.evaluate(f"local-dir:{tmp_path / 'best'}", f"folder:{root}")
    assert scores["threshold"] == saved["threshold"]
    assert 100 * scores["miou"] == pytest.approx(saved["metrics"]["iou (val)"], abs=0.01)
    if threshold == "auto":
        others = [
            ddsm_zoo.evaluate(f"local-dir:{tmp_path / 'best'}", f"folder:{root}", threshold=share)["miou"]
            for share in (0.1, 0.3, 0.5, 0.7, 0.9)
        ]
        assert scores["miou"] >= max(others) - 1e-4
    else:
        assert saved["threshold"] == 0.7
        assert scores["miou"] == pytest.approx(summary["best_miou"], abs=1e-4)


def test_a_model_of_two_logits_is_not_trained_on_a_single_name(root: Path, tmp_path: Path) -> None:
    model = ddsm_zoo.create_model("uper_tiny", num_classes=2)
    with raises(ValueError, kind="classes-differ", got=2, expected=1):
        train(RECIPE, f"folder:{root}", tmp_path, model=model)


def test_several_classes_have_no_threshold_to_train(root: Path, tmp_path: Path) -> None:
    data = as_two_names(root, tmp_path / "two", "floor", "blob")
    with raises(ConfigError, kind="config", name="threshold", got="auto"):
        train(dataclasses.replace(RECIPE, threshold="auto"), data, tmp_path / "run", pretrained=False)
    assert not (tmp_path / "run").exists()


def test_validation_images_without_the_class(root: Path, tmp_path: Path) -> None:
    """Its IoU is 0 or nowhere defined. The run ends and says so by leaving it out."""
    data = tmp_path / "data"
    shutil.copytree(root, data)
    for file in (data / "masks/val").iterdir():
        Image.fromarray(np.zeros((48, 64), np.uint8)).save(file)
    recipe = dataclasses.replace(RECIPE, threshold="auto", epochs=1, validate_every=1, images_per_epoch=2)
    train(recipe, f"folder:{data}", tmp_path / "run", pretrained=False)
    assert ddsm_zoo.from_pretrained(tmp_path / "run/best").provenance.threshold > 0


@pytest.mark.parametrize("bias", [50.0, -50.0])
def test_certain_logits_give_certain_masks(bias: float) -> None:
    model = ddsm_zoo.create_model("uper_ddsm_tiny", num_classes=1).eval()
    nn.init.constant_(model.classifier.bias, bias)
    result = ddsm_zoo.Predictor(model)(np.zeros((40, 50, 3), np.uint8))
    assert result.shares() == {"background": float(bias < 0), "foreground": float(bias > 0)}
