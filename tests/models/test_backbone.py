"""Four feature levels out of any timm network that has them, and one clear error for those that have not."""

from __future__ import annotations

import importlib.util
import logging
from collections import Counter
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from ddsm_zoo.models import backbone as backbone_module
from ddsm_zoo.models.backbone import Backbone, BackboneError, hub_uri, packaged_weights
from tests.support.errors import raises

ROUNDS_UP = "test_resnet.r160_in1k"
DROPS_THE_REST = "test_convnext.r160_in1k"  # its stem cuts the image into 4 x 4 patches
LITE0 = "tf_efficientnet_lite0.in1k"


def on_meta(name: str, size: tuple[int, int], **arguments: int) -> tuple[Backbone, list[tuple[int, ...]]]:
    """A backbone without memory and the shapes of its features."""
    with torch.device("meta"):
        backbone = Backbone(name, **arguments).eval()
        image = torch.empty(2, arguments.get("in_chans", 3), *size)
        return backbone, [tuple(features.shape) for features in backbone(image)]


@pytest.mark.parametrize(
    "name",
    [
        ROUNDS_UP,
        DROPS_THE_REST,
        "test_efficientnet.r160_in1k",
        "test_mambaout",  # channels come last in its features
        "resnet18d.ra2_in1k",  # five levels, the first at stride 2
        "vgg11",  # six
        "dla34",  # six, of which five are given unless asked
    ],
)
def test_four_levels(name: str) -> None:
    backbone, shapes = on_meta(name, (64, 96))
    cells = [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert shapes == [(2, c, *size) for c, size in zip(backbone.channels, cells, strict=True)]
    assert backbone.feature_info.channels() == list(backbone.channels)
    assert backbone.feature_info.reduction() == [4, 8, 16, 32]


@pytest.mark.parametrize("name", [ROUNDS_UP, DROPS_THE_REST, LITE0])
def test_an_output_stride_of_16(name: str) -> None:
    _, shapes = on_meta(name, (64, 96), output_stride=16)
    assert [shape[2:] for shape in shapes] == [(16, 24), (8, 12), (4, 6), (4, 6)]


@pytest.mark.parametrize("name", [ROUNDS_UP, LITE0, DROPS_THE_REST, "vgg11", "densenet121", "dla34"])
def test_the_features_cover_images_of_whole_strides(name: str) -> None:
    backbone, shapes = on_meta(name, (96, 160))
    assert backbone.multiple == 32
    assert [shape[2:] for shape in shapes] == [(24, 40), (12, 20), (6, 10), (3, 5)]


def test_the_same_weights_at_either_output_stride() -> None:
    usual, dense = Backbone(ROUNDS_UP), Backbone(ROUNDS_UP, output_stride=16)
    dense.load_state_dict(usual.state_dict())
    assert all(tensor.equal(usual.state_dict()[name]) for name, tensor in dense.state_dict().items())


def test_other_channels() -> None:
    backbone = Backbone(ROUNDS_UP, in_chans=4)
    image = torch.randn(1, 4, 33, 33, requires_grad=True)
    backbone(image)[0].sum().backward()
    assert image.grad.abs().sum((0, 2, 3)).gt(0).all()


@pytest.mark.parametrize(
    ("name", "kind", "got"),
    [
        ("resnet51", "backbone", None),
        ("resnet18.no_such_tag", "backbone", None),
        ("test_vit", "backbone-levels", [16, 16, 16]),
        ("hiera_tiny_224", "backbone-levels", None),
    ],
)
def test_networks_that_cannot_serve(name: str, kind: str, got: object) -> None:
    with raises(BackboneError, kind=kind, name=name, got=got):
        Backbone(name)


def test_networks_that_cannot_be_dilated() -> None:
    with raises(BackboneError, kind="backbone", name="test_mambaout"):
        Backbone("test_mambaout", output_stride=16)


@pytest.mark.parametrize("name", ["hrnet_w18_small", "twins_pcpvt_small"])
def test_checkpointing_that_a_network_does_not_have(name: str) -> None:
    """timm's own answer is an assertion."""
    with torch.device("meta"):
        backbone = Backbone(name)
    with raises(BackboneError, kind="backbone", name=name):
        backbone.set_grad_checkpointing()


@pytest.mark.parametrize("name", [ROUNDS_UP, "cspnext_tiny"])
def test_checkpointing_computes_again(name: str) -> None:
    """In the last one, the network that can do it lies inside timm's wrapper."""
    with torch.device("meta"):
        backbone = Backbone(name).train()
        calls = []
        for module in backbone.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.register_forward_hook(lambda *_: calls.append(None))
        counts = []
        for enable in (False, True, False):
            backbone.set_grad_checkpointing(enable)
            calls.clear()
            sum(features.sum() for features in backbone(torch.empty(2, 3, 64, 64))).backward()
            counts.append(len(calls))
    assert counts[1] > 1.5 * counts[0] == 1.5 * counts[2]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("resnet18", ["conv1.", "layer1.", "layer2.", "layer3.", "layer4."]),
        ("test_convnext", ["stem_0.", "stages_0.", "stages_1.", "stages_2.", "stages_3."]),
        ("regnety_002", ["stem.", "s1.", "s2.", "s3.", "s4."]),
        (
            "densenet121",
            ["features_conv0.", *(f"features_denseblock{i}." for i in (1, 2, 3, 4)), "features_norm5."],
        ),
        ("swin_tiny_patch4_window7_224", ["patch_embed.", "layers_0.", "layers_1.", "layers_2.", "layers_3."]),
        ("poolformer_s12", ["stem.", *(f"stages_{i}." for i in range(4))]),  # without a matcher in timm
    ],
)
def test_stages_from_the_stem_to_the_last(name: str, parts: list[str]) -> None:
    with torch.device("meta"):
        backbone = Backbone(name)
    layers = backbone.layers(coarse=True)
    sizes = {f"body.{key}": parameter.numel() for key, parameter in backbone.body.named_parameters()}
    assert layers.keys() == sizes.keys()
    first = [next(layer for key, layer in layers.items() if key.startswith(f"body.{part}")) for part in parts]
    assert first == sorted(set(first))
    assert sum(sizes[key] for key, layer in layers.items() if layer == 0) < 0.05 * sum(sizes.values())


@pytest.mark.parametrize("name", ["densenet121", "swin_tiny_patch4_window7_224", "cspnext_tiny", ROUNDS_UP])
def test_layers_are_timms_of_the_whole_network(name: str) -> None:
    with torch.device("meta"):
        layers, whole = Backbone(name).layers(), timm.create_model(name)
    expected = timm.models.group_parameters(whole, whole.group_matcher(), reverse=True)
    sizes = Counter(expected[key] for key in expected if not key.startswith(("head", "classifier", "fc", "norm")))
    assert Counter(layers.values()) == sizes


def test_tables_without_weight_decay_are_timms() -> None:
    with torch.device("meta"):
        names = Backbone("swin_tiny_patch4_window7_224").no_weight_decay()
    assert names == {
        f"body.layers_{stage}.blocks.{block}.attn.relative_position_bias_table"
        for stage, depth in enumerate((2, 2, 6, 2))
        for block in range(depth)
    }


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "hieradet_small"])
def test_windowed_networks_take_images_of_any_size(name: str) -> None:
    _, shapes = on_meta(name, (96, 160))
    assert [shape[2:] for shape in shapes] == [(24, 40), (12, 20), (6, 10), (3, 5)]


def test_options_reach_the_network() -> None:
    backbone = Backbone("test_convnext", args={"drop_path_rate": 0.5, "act_layer": "relu"})
    rates = [part.drop_prob for part in backbone.modules() if isinstance(part, timm.layers.DropPath)]
    assert max(rates) == 0.5
    assert not any(isinstance(part, nn.GELU) for part in backbone.modules())


@pytest.mark.parametrize(
    ("name", "args"), [(ROUNDS_UP, {"window_size": 7}), (ROUNDS_UP, {"act_layer": "no_such_thing"})]
)
def test_options_that_a_network_does_not_have(name: str, args: dict[str, object]) -> None:
    with raises(BackboneError, kind="backbone", name=name) as error:
        Backbone(name, args=args)
    assert str(args)[1:-1] in str(error.value)


def test_packaged_imagenet_weights() -> None:
    """The whole classifier, filled from the package's file in order, has the same features to the bit."""
    package, file, _ = backbone_module._PACKAGED_WEIGHTS[LITE0]
    origin = importlib.util.find_spec(package).origin
    tensors = torch.load(Path(origin).parent / file, weights_only=True)
    classifier = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    targets = {name: t for name, t in classifier.state_dict().items() if not name.endswith("num_batches_tracked")}
    values = [tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")]
    for target, tensor in zip(targets.values(), values, strict=True):
        target.copy_(tensor)
    image = torch.randn(1, 3, 65, 97)
    backbone = Backbone(LITE0, weights=packaged_weights(LITE0)).eval()
    with torch.inference_mode():
        expected = classifier.forward_intermediates(image, intermediates_only=True)
        for features, intermediate in zip(backbone(image), expected[-4:], strict=True):
            assert features.equal(intermediate)


def test_other_weights_in_the_package_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    package = tmp_path / "other_weights"
    package.mkdir()
    (package / "__init__.py").touch()
    torch.save({}, package / "weights.pth")
    monkeypatch.syspath_prepend(tmp_path)
    known = {"net": ("other_weights", "weights.pth", "0" * 64), "gone": ("no_such_package", "weights.pth", "0" * 64)}
    monkeypatch.setattr(backbone_module, "_PACKAGED_WEIGHTS", known)
    with caplog.at_level(logging.WARNING):
        assert packaged_weights("net") is None
    assert "weights.pth does not hold the expected weights" in caplog.text
    assert packaged_weights("gone") is None
    assert packaged_weights(ROUNDS_UP) is None


@pytest.mark.parametrize("output_stride", [32, 16])
def test_given_weights(output_stride: int) -> None:
    weights = timm.create_model("test_resnet", num_classes=7).state_dict()  # the classifier does not matter
    backbone = Backbone(ROUNDS_UP, output_stride=output_stride, weights=weights)
    tensors = backbone.body.state_dict()
    assert set(weights) - set(tensors) == {"fc.weight", "fc.bias"}
    assert all(tensor.equal(weights[name]) for name, tensor in tensors.items())


def test_given_weights_on_a_gray_image() -> None:
    """A gray image gives what the same image in three equal colors would."""
    weights = timm.create_model("test_resnet").state_dict()
    gray, color = Backbone(ROUNDS_UP, in_chans=1, weights=weights).eval(), Backbone(ROUNDS_UP, weights=weights).eval()
    image = torch.randn(1, 1, 33, 33)
    with torch.inference_mode():
        for actual, expected in zip(gray(image), color(image.expand(-1, 3, -1, -1)), strict=True):
            torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_weights_of_another_network() -> None:
    weights = timm.create_model("test_efficientnet").state_dict()
    with raises(BackboneError, kind="weights-mismatch", name=ROUNDS_UP):
        Backbone(ROUNDS_UP, weights=weights)


def test_weights_that_lack_a_stage() -> None:
    """Part of the network would stay random, and nobody would know."""
    weights = timm.create_model("test_resnet").state_dict()
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith("layer4")}
    with pytest.raises(BackboneError, match="layer4"):
        Backbone(ROUNDS_UP, weights=weights)


def test_addresses_of_imagenet_weights() -> None:
    assert hub_uri("resnet101s.gluon_in1k") == "hf-hub:timm/resnet101s.gluon_in1k"
    assert hub_uri("resnet18") == "hf-hub:timm/resnet18.a1_in1k"  # timm's default among several


@pytest.mark.parametrize("name", ["no_such_network", "test_mambaout", "resnet18.no_such_tag"])
def test_networks_without_imagenet_weights(name: str) -> None:
    with raises(BackboneError, kind="backbone", name=name):
        hub_uri(name)


@pytest.mark.parametrize("size", [(1, 1), (7, 10), (32, 33)])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (3, 1), (1, 2)])
def test_tensorflows_padding_is_timms(size: tuple[int, int], stride: int, dilation: int) -> None:
    arguments = {"in_channels": 2, "out_channels": 3, "kernel_size": 3, "stride": stride, "dilation": dilation}
    ours, theirs = backbone_module.Conv2dSame(**arguments), timm.layers.Conv2dSame(**arguments)
    theirs.load_state_dict(ours.state_dict())
    image = torch.randn(2, 2, *size)
    torch.testing.assert_close(ours(image), theirs(image), rtol=0, atol=0)
    pool = {"kernel_size": 2, "stride": stride, "ceil_mode": True, "count_include_pad": False}
    expected = timm.layers.AvgPool2dSame(**pool)(image)
    torch.testing.assert_close(backbone_module.AvgPool2dSame(**pool)(image), expected, rtol=0, atol=0)
