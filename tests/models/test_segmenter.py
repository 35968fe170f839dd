"""Whole models: every kind of name, every size, and the methods that users of timm know."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models import group_parameters
from torch import Tensor, nn

import ddsm_zoo
from ddsm_zoo.config import DDSMConfig, ModelConfig, Provenance
from ddsm_zoo.layers import DDSM
from ddsm_zoo.models import Segmenter
from ddsm_zoo.models.backbone import BackboneError
from ddsm_zoo.zoo import table
from tests.support.errors import raises

TINY = ddsm_zoo.list_models("*_tiny")
SIZES = [(1, 1), (1, 300), (33, 500), (65, 97), (31, 1)]
BACKBONES = ["test_resnet.r160_in1k", "test_convnext.r160_in1k", "test_efficientnet.r160_in1k"]


def tiny(decoder: str = "uper", fusion: str = "ddsm", **changes: object) -> ModelConfig:
    """Small, and without the dropout that would make two runs differ."""
    config = table.architecture(decoder, fusion, "tiny", num_classes=5)
    return dataclasses.replace(config, **{"dropout": 0.0, **changes})


def spread_out(model: Segmenter) -> Segmenter:
    """A classifier that starts with a deviation of 0.01 would hide what changes before it."""
    torch.nn.init.normal_(model.classifier.weight)
    return model


def test_the_zoo_has_a_tiny_model_of_every_kind() -> None:
    assert len(TINY) == 2 * 5


@pytest.mark.parametrize(
    "name",
    [
        *TINY,
        "uper_dcn_r18",
        "uper_ddsm_r50",
        "deeplabv3plus_ddsm_r50",
        "deeplabv3plus_ddsm_c_lite0",
        "uper_ddsm_r101_camvid_cs",
        "uper_ddsm_lite0_camvid",
    ],
)
def test_names_build(name: str) -> None:
    config = ddsm_zoo.model_config(name)
    with torch.device("meta"):
        model = Segmenter(config).eval()
        assert model(torch.empty(2, 3, 65, 97)).shape == (2, config.num_classes, 65, 97)
    parts = {key.split(".")[0] for key in model.state_dict()}
    assert parts == {"backbone", "decoder", "classifier"}
    assert {key for key in model.state_dict() if key.startswith("classifier")} == {
        "classifier.weight",
        "classifier.bias",
    }
    fused = 0 if config.fusion in ("none", "dcn") else len(config.fused_stages)
    assert sum(isinstance(part, DDSM) for part in model.modules()) == fused


@pytest.mark.parametrize("name", TINY)
def test_any_size(name: str) -> None:
    model = Segmenter(ddsm_zoo.model_config(name)).eval()
    with torch.inference_mode():
        for size in SIZES:
            logits = model(torch.randn(1, 3, *size))
            assert logits.shape == (1, 19, *size)
            assert logits.isfinite().all()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_last_row_and_column_are_seen(backbone: str) -> None:
    """65 x 97 is no multiple of any stride: what is left over at the border must still count."""
    model = spread_out(Segmenter(tiny(backbone=backbone))).eval()
    image = torch.randn(1, 3, 65, 97, requires_grad=True)
    logits = model(image)
    assert logits.shape == (1, 5, 65, 97)
    logits[..., -1, -1].sum().backward()
    assert image.grad[..., -1, :].ne(0).any()
    assert image.grad[..., :, -1].ne(0).any()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_padding_to_whole_strides_is_cut_off_again(backbone: str) -> None:
    model = spread_out(Segmenter(tiny(backbone=backbone))).eval()
    image = torch.randn(1, 3, 65, 97)
    with torch.inference_mode():
        expected = model(F.pad(image, (0, 31, 0, 31)))[..., :65, :97]
        torch.testing.assert_close(model(image), expected)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_any_size_on_other_backbones(backbone: str) -> None:
    model = Segmenter(tiny(backbone=backbone)).eval()
    with torch.inference_mode():
        for size in ((1, 1), (31, 1), (33, 50)):
            assert model(torch.randn(1, 3, *size)).shape == (1, 5, *size)


@pytest.mark.parametrize("name", TINY)
def test_everything_learns(name: str) -> None:
    model = Segmenter(dataclasses.replace(ddsm_zoo.model_config(name), auxiliary=True, num_classes=5))
    for layer in model.backbone.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(layer.weight)  # timm starts residual branches at 0, which stops their gradients
    logits, auxiliary = model.forward_auxiliary(torch.randn(2, 3, 65, 97))
    target = torch.randint(5, (2, 65, 97))
    (F.cross_entropy(logits, target) + F.cross_entropy(auxiliary, target)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.ne(0).any(), name


@pytest.mark.parametrize("decoder", ["uper", "deeplabv3plus"])
def test_a_batch_of_one_trains(decoder: str) -> None:
    model = Segmenter(tiny(decoder, auxiliary=True)).train()
    logits, auxiliary = model.forward_auxiliary(torch.randn(1, 3, 65, 43))
    (logits.square().mean() + auxiliary.square().mean()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert all(buffer.isfinite().all() for buffer in model.buffers())


@pytest.mark.parametrize("fusion", ["none", "dcn", "ddsm"])
def test_bfloat16_training(fusion: str) -> None:
    model = Segmenter(tiny(fusion=fusion, auxiliary=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, auxiliary = model.forward_auxiliary(torch.randn(2, 3, 64, 64))
    (logits.float().square().mean() + auxiliary.float().square().mean()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_channels_last_changes_nothing() -> None:
    model = spread_out(Segmenter(tiny())).eval()
    image = torch.randn(2, 3, 65, 97)
    with torch.inference_mode():
        expected = model(image)
        actual = model.to(memory_format=torch.channels_last)(image.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_images_of_a_batch_do_not_mix() -> None:
    model = spread_out(Segmenter(tiny())).eval()
    images = torch.randn(3, 3, 65, 97)
    with torch.inference_mode():
        together, alone = model(images), torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_other_channels() -> None:
    model = spread_out(Segmenter(tiny(in_chans=4))).eval()
    image = torch.randn(1, 4, 65, 97, requires_grad=True)
    model(image).square().sum().backward()
    assert image.grad.abs().sum((0, 2, 3)).gt(0).all()


@pytest.mark.parametrize("backbone", BACKBONES[:2])
def test_the_auxiliary_head(backbone: str) -> None:
    model = Segmenter(tiny(backbone=backbone, auxiliary=True)).eval()
    image = torch.randn(2, 3, 65, 97)
    with torch.inference_mode():
        logits, auxiliary = model.forward_auxiliary(image)
        assert logits.equal(model(image))
        assert auxiliary.shape == logits.shape
        for parameter in model.auxiliary.parameters():
            parameter.zero_()
        again, auxiliary = model.forward_auxiliary(image)
    assert again.equal(logits)
    assert auxiliary.eq(0).all()


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_both_logits_come_through_a_wrapper(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = Segmenter(tiny(fusion="none", auxiliary=True)).eval()
    image = torch.randn(2, 3, 65, 97)
    with torch.no_grad():
        expected = model.forward_auxiliary(image)
        both = wrap(model)(image, auxiliary=True)
    assert list(both) == ["out", "aux"]
    for found, logits in zip(both.values(), expected, strict=True):
        torch.testing.assert_close(found, logits, atol=1e-5, rtol=1e-5)


def test_the_auxiliary_head_stands_apart() -> None:
    with_head, without = Segmenter(tiny(auxiliary=True)), Segmenter(tiny())
    extra = set(with_head.state_dict()) - set(without.state_dict())
    assert extra
    assert all(name.startswith("auxiliary.") for name in extra)
    with raises(ValueError, kind="argument", name="auxiliary"):
        without.forward_auxiliary(torch.randn(1, 3, 64, 64))


def test_a_frozen_encoder_learns_nothing_until_it_is_released() -> None:
    model = Segmenter(tiny()).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    image = torch.randn(2, 3, 64, 64)

    def changed() -> set[str]:
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        model.train()
        model(image).square().mean().backward()
        optimizer.step()
        return {name.split(".")[0] for name, tensor in model.state_dict().items() if not tensor.equal(before[name])}

    model.freeze_encoder()
    assert model.training
    assert changed() == {"decoder", "classifier"}
    model.eval()
    model.unfreeze_encoder()
    assert not model.training
    assert changed() == {"backbone", "decoder", "classifier"}


def test_options_of_the_backbone_are_part_of_the_config() -> None:
    config = tiny(backbone="test_convnext", backbone_args={"drop_path_rate": 0.5})
    model = Segmenter(config)
    assert max(part.drop_prob for part in model.modules() if isinstance(part, DropPath)) == 0.5
    assert Segmenter(tiny(backbone_args={"output_stride": 16})).backbone.multiple == 16


def test_features_then_head_is_forward() -> None:
    model = spread_out(Segmenter(tiny())).eval()
    image = torch.randn(1, 3, 65, 97)
    with torch.inference_mode():
        features = model.forward_features(image)
        assert features.shape == (1, model.config.width, 24, 32)  # of 96 x 128, the next whole strides
        assert model.forward_head(features, pre_logits=True).equal(features)
        logits = F.interpolate(model.forward_head(features), (96, 128), mode="bilinear", align_corners=False)
        torch.testing.assert_close(logits[..., :65, :97], model(image))


def test_dropout_is_for_training() -> None:
    model = Segmenter(tiny(dropout=0.5))
    features = torch.ones(1, model.config.width, 3, 3)
    dropped = model.train().forward_head(features, pre_logits=True)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert dropped.flatten(2).std(2).eq(0).all()  # whole channels
    assert model.eval().forward_head(features, pre_logits=True).equal(features)


@pytest.mark.parametrize("count", [0, -1, 2.5, "3", None, True])
def test_a_classifier_for_no_number_of_classes_is_refused(count: object) -> None:
    with raises(ValueError, name="num_classes", got=count, expected="1 to 65536"):
        Segmenter(tiny()).reset_classifier(count)  # type: ignore[arg-type]


def test_reset_classifier() -> None:
    model = Segmenter(tiny(auxiliary=True)).double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert model.get_classifier() is model.classifier
    model.reset_classifier(7)
    assert model.num_classes == model.config.num_classes == 7
    assert model.get_classifier().weight.shape == (7, 32, 1, 1)
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        if not name.startswith(("classifier.", "auxiliary.")):
            assert tensor.equal(before[name])
    logits, auxiliary = model.eval().forward_auxiliary(torch.randn(1, 3, 40, 40).double())
    assert logits.shape == auxiliary.shape == (1, 7, 40, 40)
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == {
        name: tensor.shape for name, tensor in Segmenter(model.config).state_dict().items()
    }


def order_of_layers(model: Segmenter, coarse: bool) -> dict[str, int]:
    layers = group_parameters(model, model.group_matcher(coarse), reverse=True)
    assert set(layers) == {name for name, _ in model.named_parameters()}
    return layers


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize(
    ("backbone", "stages"),
    [
        ("test_resnet.r160_in1k", ["layer1.", "layer2.", "layer3.", "layer4."]),
        ("test_convnext.r160_in1k", ["stages_0.", "stages_1.", "stages_2.", "stages_3."]),
        ("test_efficientnet.r160_in1k", [f"blocks.{stage}." for stage in range(5)]),
    ],
)
def test_layers_from_input_to_output(backbone: str, stages: list[str], coarse: bool) -> None:
    """What layer-wise learning rates rest on: timm sorts the parameters by these expressions."""
    with torch.device("meta"):
        model = Segmenter(tiny(backbone=backbone, auxiliary=True))
    layers = order_of_layers(model, coarse)
    members = [
        [layer for name, layer in layers.items() if name.startswith(f"backbone.body.{stage}")] for stage in stages
    ]
    in_stages = {layer for layers_of_stage in members for layer in layers_of_stage}
    stem = {
        layer
        for name, layer in layers.items()
        if name.startswith("backbone.") and not name.startswith(tuple(f"backbone.body.{stage}" for stage in stages))
    }
    head = {layer for name, layer in layers.items() if not name.startswith("backbone.")}
    assert stem == {0}
    assert max(in_stages) < min(head)
    assert all(max(earlier) < min(later) for earlier, later in itertools.pairwise(members))
    assert min(in_stages) == 1
    if coarse:
        assert len(in_stages) == len(stages)


def test_blocks_are_layers_of_their_own() -> None:
    with torch.device("meta"):
        model = Segmenter(table.architecture("uper", "none", "r18"))
    layers = order_of_layers(model, coarse=False)
    blocks = [layers[f"backbone.body.layer{stage}.{block}.conv1.weight"] for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert blocks == list(range(1, 9))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_checkpointing_recomputes_instead_of_keeping(backbone: str) -> None:
    model = spread_out(Segmenter(tiny(backbone=backbone))).eval()  # eval: running statistics stay as they are
    image = torch.randn(2, 3, 64, 64)

    def gradients_and_calls() -> tuple[list[Tensor], int]:
        calls: list[object] = []
        inner = [part for name, part in model.backbone.named_modules() if name.count(".") >= 2]
        hooks = [part.register_forward_hook(lambda *_: calls.append(None)) for part in inner]
        model.zero_grad()
        model(image).square().mean().backward()
        for hook in hooks:
            hook.remove()
        return [parameter.grad.clone() for parameter in model.parameters()], len(calls)

    expected, kept = gradients_and_calls()
    model.set_grad_checkpointing()
    actual, recomputed = gradients_and_calls()
    assert recomputed > 1.3 * kept
    for gradient, target in zip(actual, expected, strict=True):
        torch.testing.assert_close(gradient, target)
    model.set_grad_checkpointing(False)
    assert gradients_and_calls()[1] == kept


def test_description() -> None:
    model = Segmenter(tiny())
    assert model.config == tiny()
    assert model.num_classes == 5
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    model.provenance = Provenance(name="mine")
    assert model.default_cfg == model.pretrained_cfg
    assert model.pretrained_cfg["name"] == "mine"
    assert not {"labels", "sha256", "metrics"} & model.pretrained_cfg.keys()
    with pytest.raises(TypeError):
        model.pretrained_cfg["name"] = "yours"


def test_equal_configs_have_equal_parameters() -> None:
    shapes = [{name: tensor.shape for name, tensor in Segmenter(tiny()).state_dict().items()} for _ in range(2)]
    assert shapes[0] == shapes[1]
    wider = Segmenter(tiny(ddsm=DDSMConfig(width=25, pool=4, positions=8)))
    assert {name: tensor.shape for name, tensor in wider.state_dict().items()} != shapes[0]


@pytest.mark.parametrize("decoder", ["uper", "deeplabv3plus"])
@pytest.mark.parametrize("backbone", ["test_vit", "no_such_network"])
def test_backbones_that_cannot_serve(decoder: str, backbone: str) -> None:
    with raises(BackboneError, name=backbone):
        Segmenter(tiny(decoder, backbone=backbone))
