"""Models of one's own: scored as by hand, recorded as what they are, refused in one line."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import Tensor, nn

import ddsm_zoo
from ddsm_zoo import evaluate
from ddsm_zoo.config import Preprocess
from ddsm_zoo.data.scenes.render import render_scene
from ddsm_zoo.labels import CAMVID
from ddsm_zoo.layers import resize
from ddsm_zoo.metrics import ConfusionMatrix
from ddsm_zoo.utils.files import sha256_of
from tests.support.binary_set import write_binary_set
from tests.support.errors import raises

FIRST = 1_000_000_000  # the seed of the first scene of val
PLAIN = Preprocess(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


class Quarter(nn.Module):
    """A network of another library: it gives a dict, and its scores have a quarter of the resolution."""

    def __init__(self) -> None:
        super().__init__()
        classifier = nn.Conv2d(8, len(CAMVID), 1)
        classifier.weight.data *= 20  # no class wins everywhere
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), classifier)

    def forward(self, image: Tensor) -> OrderedDict[str, Tensor]:
        return OrderedDict(out=self.layers(image))


@pytest.fixture
def network() -> Quarter:
    return Quarter().train()  # scores must be those of evaluation


def iou_by_hand(network: Quarter, preprocess: Preprocess) -> list[float]:
    pixels, mask = render_scene(FIRST)
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocess.mean, preprocess.std))
    image = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std
    with torch.inference_mode():
        scores = network.eval()(image[None])["out"]
    ids = F.interpolate(scores, mask.shape, mode="bilinear").argmax(1)[0]
    confusion = ConfusionMatrix(len(CAMVID))
    confusion.update(ids, torch.from_numpy(mask))
    iou: list[float] = confusion.compute()["iou"]
    return iou


def test_images_are_enlarged_as_the_preprocessing_says(network: Quarter) -> None:
    """A network of 1 x 1 kernels after its stride of 4 sees twice the image at half that stride."""
    preprocess = dataclasses.replace(PLAIN, min_size=(720, 960))
    result = evaluate(lambda image: network.eval()(image)["out"], "scenes:1", preprocess=preprocess)
    pixels, mask = render_scene(FIRST)
    image = F.interpolate(torch.from_numpy(pixels).permute(2, 0, 1)[None].float(), (720, 960), mode="bilinear")
    with torch.inference_mode():
        scores = network((image.round() / 255 - 0.5) / 0.25)["out"]
    ids = F.interpolate(F.interpolate(scores, (720, 960), mode="bilinear"), mask.shape, mode="bilinear").argmax(1)[0]
    confusion = ConfusionMatrix(len(CAMVID))
    confusion.update(ids, torch.from_numpy(mask))
    assert mask.shape == (360, 480)
    assert result["miou"] == pytest.approx(confusion.compute()["miou"], abs=1e-3)
    assert result["preprocess"]["min_size"] == (720, 960)
    assert result["resolutions"] == [[360, 480]]


@pytest.mark.parametrize("preprocess", [None, PLAIN])
def test_a_function_around_a_network_scores_as_by_hand(network: Quarter, preprocess: Preprocess | None) -> None:
    network.eval()
    result = evaluate(lambda image: network(image)["out"], "scenes:1", preprocess=preprocess, device="cpu")
    np.testing.assert_allclose(
        list(result["iou"].values()), iou_by_hand(network, preprocess or Preprocess()), rtol=1e-3
    )
    used = preprocess or Preprocess()
    assert result["preprocess"] == {"mean": used.mean, "std": used.std, "min_size": None}
    assert result["weights"] == {"uri": None, "sha256": None}


def test_a_module_is_scored_in_evaluation_mode_and_known_by_its_weights(network: Quarter) -> None:
    result = evaluate(network.layers, "scenes:1", preprocess=PLAIN, device="cpu")
    state = {name: tensor.contiguous() for name, tensor in network.layers.state_dict().items()}
    sha256 = hashlib.sha256(safetensors.torch.save(dict(sorted(state.items())))).hexdigest()
    assert (result["model"], result["weights"]) == ("Sequential", {"uri": None, "sha256": sha256})
    np.testing.assert_allclose(list(result["iou"].values()), iou_by_hand(network, PLAIN), rtol=1e-3)


def test_scores_of_a_quarter_of_the_size_fit_every_protocol(network: Quarter, tmp_path: Path) -> None:
    """Windows on the network's grid see what the whole image shows but for the resizing at their borders."""
    network.eval()
    (tmp_path / "windows.toml").write_text("crop = [120, 160]\nstride = [80, 80]\nscales = [1.0]")
    seen = set()

    def predict(image: Tensor) -> Tensor:
        seen.add(tuple(image.shape))
        return network(image)["out"]

    whole, windows = (
        evaluate(predict, "scenes:1", protocol=protocol, device="cpu")
        for protocol in ("whole", tmp_path / "windows.toml")
    )
    assert windows["pixel_accuracy"] == pytest.approx(whole["pixel_accuracy"], abs=0.01)
    assert seen == {(1, 3, 360, 480), (1, 3, 120, 160)}


def test_the_hash_is_of_the_weights_as_they_are(tmp_path: Path) -> None:
    """Not of the file that they were loaded from."""
    ddsm_zoo.save_pretrained(ddsm_zoo.create_model("uper_tiny", num_classes=11), tmp_path / "before")
    model = ddsm_zoo.create_model(f"local-dir:{tmp_path}/before", pretrained=True)
    model.provenance = dataclasses.replace(model.provenance, labels=CAMVID)
    before = evaluate(model, "scenes:1")["weights"]["sha256"]
    assert before == sha256_of(tmp_path / "before" / "model.safetensors")
    with torch.no_grad():
        model.classifier.bias[0] += 1
    after = evaluate(model, "scenes:1")["weights"]["sha256"]
    ddsm_zoo.save_pretrained(model, tmp_path / "after")
    assert after == sha256_of(tmp_path / "after" / "model.safetensors") != before


def test_weights_that_two_layers_share() -> None:
    first, second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
    second.weight = first.weight
    result = evaluate(nn.Sequential(first, second, nn.Conv2d(3, len(CAMVID), 1)), "scenes:1", device="cpu")
    assert len(result["weights"]["sha256"]) == 64


def test_a_module_without_parameters() -> None:
    class Brightness(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image.mean(1, keepdim=True) * torch.arange(len(CAMVID)).view(-1, 1, 1)

    figures = evaluate(Brightness(), "scenes:1", device="cpu")
    assert figures["confusion"] == evaluate(Brightness().forward, "scenes:1", device="cpu")["confusion"]


def test_what_gives_no_scores(network: Quarter) -> None:
    with raises(ValueError, kind="array", got="OrderedDict"):
        evaluate(network, "scenes:1", protocol="flip", device="cpu")
    with raises(ValueError, kind="array", got=(1, 360, 480)):
        evaluate(lambda image: image.argmax(1), "scenes:1", device="cpu")
    with raises(ValueError, kind="classes-differ", got=3, expected=11):
        evaluate(lambda image: resize(image, (9, 9)), "scenes:1", device="cpu")


@pytest.mark.parametrize(("bias", "warnings"), [(0.5, 1), (-0.5, 0), (3.0, 0)])
def test_probabilities_of_a_single_class_are_not_taken_for_logits_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, bias: float, warnings: int
) -> None:
    data = f"folder:{write_binary_set(tmp_path, train=1, val=2)}"
    figures = ddsm_zoo.evaluate(lambda images: torch.full_like(images[:, :1], bias), data)
    assert figures["recall"] == float(bias > 0)
    said = [record.message for record in caplog.records if "if they are probabilities" in record.message]
    assert len(said) == warnings


class Doubled(nn.Module):
    """A user's own module around a segmenter, which computes something else."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, image: Tensor) -> Tensor:
        return self.module(2 * image)


def test_a_wrapped_model_is_scored_as_the_model_inside() -> None:
    model = ddsm_zoo.create_model("uper_tiny", num_classes=11)  # its input is not normalized as for ImageNet
    plain = evaluate(model, "scenes:1", device="cpu")
    average = torch.optim.swa_utils.AveragedModel(model)
    for wrapped in (nn.DataParallel(average), ModelEmaV3(model), torch.compile(model, backend="eager")):
        assert evaluate(wrapped, "scenes:1", device="cpu") == plain
    few = ddsm_zoo.create_model("uper_tiny", num_classes=5)
    with raises(ValueError, kind="classes-differ", got=5, expected=11):
        evaluate(nn.DataParallel(few), "scenes:1", device="cpu")
    assert evaluate(Doubled(model), "scenes:1", device="cpu")["model"] == "Doubled"
