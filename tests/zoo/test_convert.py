"""Weights of other libraries: our layers compute what theirs did; what does not correspond is said or refused."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from ddsm_zoo.models import Segmenter
from ddsm_zoo.utils.files import CheckpointError
from ddsm_zoo.zoo.convert import convert_weights, read_checkpoint
from ddsm_zoo.zoo.factory import create_model
from ddsm_zoo.zoo.publishing import save_pretrained
from tests.support.errors import raises


def lived_in(module: nn.Module) -> nn.Module:
    """No tensor is at its initial value, so that a swapped pair would show."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand_like(tensor) if "var" in name else 0.05 * torch.randn_like(tensor))
    return module.eval()


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(1, 3, 64, 96)


# -- backbones


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (lambda: torchvision.models.resnet18(weights=None), "resnet18"),
        (lambda: timm.create_model("resnet18d"), "resnet18d"),
        (lambda: timm.create_model("test_resnet"), "test_resnet"),
    ],
)
def test_a_resnet_becomes_the_backbone(theirs: Callable[[], nn.Module], ours: str, images: Tensor) -> None:
    source = lived_in(theirs())
    model = create_model("uper", backbone=ours, width=16).eval()
    classifier = model.classifier.weight.clone()
    done = convert_weights(model, source.state_dict())
    features: dict[str, Tensor] = {}
    source.layer4.register_forward_hook(lambda module, args, output: features.update(x5=output))
    with torch.inference_mode():
        source(images)
        close(model.backbone(images)[3], features["x5"])
    assert torch.equal(model.classifier.weight, classifier)
    assert done.source == "ResNet"
    assert set(done.left_out) == {"fc.weight", "fc.bias"}
    assert {name.split(".")[0] for name in done.fresh} == {"decoder", "classifier"}
    assert done.mapped["layer1.0.conv1.weight"] == "backbone.body.layer1.0.conv1.weight"
    assert model.pretrained_cfg["converted"] == done.to_dict()


def test_old_files_have_no_batch_counters() -> None:
    tensors = torchvision.models.resnet18(weights=None).state_dict()
    given = {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    done = convert_weights(create_model("uper", backbone="resnet18", width=16), given)
    assert len(done.mapped) == len(given) - 2


# -- smp


def smp_upernet(images: Tensor) -> tuple[nn.Module, Segmenter, Callable[[], Tensor]]:
    """Theirs, ours and what theirs computes with the parts that ours lacks replaced by ours."""
    theirs: Any = lived_in(smp.UPerNet("resnet18", encoder_weights=None, classes=3, decoder_channels=32))
    ours = create_model("uper", backbone="resnet18", width=32, num_classes=3)

    def compute() -> Tensor:
        theirs.decoder.feature_norms = nn.ModuleList(nn.Identity() for _ in range(4))
        theirs.decoder.psp.out_conv = ours.decoder.context.fuse
        return theirs.segmentation_head[0](theirs.decoder(theirs.encoder(images)))

    return theirs, ours, compute


def smp_deeplab(images: Tensor) -> tuple[nn.Module, Segmenter, Callable[[], Tensor]]:
    options = {"decoder_channels": 32, "decoder_atrous_rates": (6, 12, 18)}
    theirs: Any = lived_in(smp.DeepLabV3Plus("resnet18", encoder_weights=None, classes=3, **options))
    ours = create_model("deeplabv3plus", backbone="resnet18", width=32, num_classes=3, separable=True)

    def compute() -> Tensor:
        theirs.decoder.aspp = theirs.decoder.aspp[0]
        theirs.decoder.up = nn.Upsample(scale_factor=4, mode="bilinear", align_corners=False)
        # timm's last stage dilates one convolution less than smp's: the decoders are compared on the same features
        fused = theirs.decoder([images, images, *ours.backbone(images)])
        return theirs.segmentation_head[0](ours.decoder.refine[1](fused))

    return theirs, ours, compute


@pytest.mark.parametrize(
    ("make", "source", "fresh", "left_out"),
    [
        (smp_upernet, "smp UPerNet", {"decoder.context.fuse"}, {"decoder.feature_norms", "decoder.psp.out_conv"}),
        (smp_deeplab, "smp DeepLabV3+", {"decoder.refine.1"}, {"decoder.aspp.1", "decoder.aspp.2"}),
    ],
)
def test_a_model_of_smp(images: Tensor, make: Any, source: str, fresh: set[str], left_out: set[str]) -> None:
    theirs, ours, compute = make(images)
    done = convert_weights(ours, theirs.state_dict())
    assert len(done.mapped) + len(done.left_out) == len(theirs.state_dict())
    with torch.inference_mode():
        found = ours.eval().forward_head(ours.forward_features(images))
        close(found, compute())
    assert done.source == source
    for part, names in ((done.fresh, fresh), (done.left_out, left_out)):
        assert all(name.startswith(tuple(names)) for name in part)
        assert all(any(name.startswith(prefix) for name in part) for prefix in names)
    for prefix in fresh:
        assert prefix in str(done)


@pytest.mark.parametrize("network", ["test_resnet", "test_efficientnet", "test_convnext"])
def test_an_encoder_of_timm_in_smp(images: Tensor, network: str) -> None:
    theirs: Any = lived_in(smp.UPerNet(f"tu-{network}", encoder_weights=None, classes=3, decoder_channels=32))
    ours = create_model("uper", backbone=network, width=32, num_classes=3).eval()
    convert_weights(ours, theirs.state_dict())
    with torch.inference_mode():
        for level, expected in zip(ours.backbone(images), theirs.encoder(images)[-4:], strict=True):
            assert torch.equal(level, expected)


@pytest.mark.parametrize(
    ("encoder", "backbone", "first"),
    [
        ("efficientnet-b0", "efficientnet_b0", "it has encoder._conv_stem.weight"),
        ("se_resnet50", "seresnet50", "it has encoder.layer0.conv1.weight"),
        ("mobilenet_v2", "mobilenetv2_100", "it has encoder.features.0.0.weight"),
        ("tu-test_resnet", "test_convnext", "it has encoder.model.conv1.0.weight"),
        ("resnet18", "resnet34", "it lacks backbone.body.layer1.2.conv1.weight"),
    ],
)
def test_another_encoder_is_named_as_the_cause(encoder: str, backbone: str, first: str) -> None:
    with torch.device("meta"):
        ours = create_model("uper", backbone=backbone, width=32, num_classes=3)
        theirs = smp.UPerNet(encoder, encoder_weights=None, classes=3, decoder_channels=32)
    with raises(CheckpointError, kind="weights-mismatch", got=first, expected=backbone):
        convert_weights(ours, theirs.state_dict())


# -- our own


@pytest.mark.parametrize(
    ("prefix", "others"),
    [
        ("", {}),
        ("module.", {"n_averaged": torch.tensor(3)}),
        ("model.", {"loss.class_weights": torch.ones(3)}),
        ("net._orig_mod.", {"criterion.weight": torch.ones(3)}),
    ],
    ids=["a state dict", "an average", "Lightning", "Lightning around torch.compile"],
)
def test_a_state_dict_of_ours(tmp_path: Path, prefix: str, others: dict[str, Tensor]) -> None:
    source = lived_in(create_model("uper_ddsm_tiny", num_classes=3, auxiliary=True))
    state = {prefix + name: tensor for name, tensor in source.state_dict().items()} | others
    torch.save({"state_dict": state, "epoch": 3, "pytorch-lightning_version": "2.5"}, tmp_path / "last.ckpt")
    model = create_model("uper_ddsm_tiny", num_classes=3)
    done = convert_weights(model, tmp_path / "last.ckpt")
    assert done.source == "ddsm-zoo model"
    assert done.fresh == ()
    assert set(others) - {"n_averaged"} <= set(done.left_out)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name


def test_weights_without_a_refinement_fill_a_model_of_stride_2(images: Tensor) -> None:
    source, model = (create_model("uper_ddsm_tiny", num_classes=3, stride=stride).eval() for stride in (4, 2))
    done = convert_weights(model, source.state_dict())
    assert {name.split(".")[0] for name in done.fresh} == {"refinement"}
    assert torch.equal(model(images), source(images))


def test_a_state_dict_of_another_model_of_ours() -> None:
    source = create_model("uper_ddsm_tiny", num_classes=3)
    with raises(CheckpointError, kind="weights-mismatch", got={"missing": 15, "unexpected": 66}):
        convert_weights(create_model("uper_tiny", num_classes=3), source.state_dict())


# -- mmsegmentation


class ConvModule(nn.Module):
    """A convolution, its normalization and ReLU under mmcv's names."""

    def __init__(self, inputs: int, outputs: int, size: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


class UPerHead(nn.Module):
    """The decode head by the names and the order of computation of mmsegmentation's."""

    def __init__(self, channels: list[int], width: int, num_classes: int) -> None:
        super().__init__()
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(bins), ConvModule(channels[-1], width)) for bins in (1, 2, 3, 6)
        )
        self.bottleneck: nn.Module = ConvModule(channels[-1] + 4 * width, width, 3)
        self.lateral_convs = nn.ModuleList(ConvModule(number, width) for number in channels[:-1])
        self.fpn_convs = nn.ModuleList(ConvModule(width, width, 3) for _ in channels[:-1])
        self.fpn_bottleneck = ConvModule(4 * width, width, 3)
        self.conv_seg = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: list[Tensor]) -> Tensor:
        laterals = [conv(level) for conv, level in zip(self.lateral_convs, x[:-1], strict=True)]
        pooled = [resized(module(x[-1]), x[-1]) for module in self.psp_modules]
        laterals.append(self.bottleneck(torch.cat([x[-1], *pooled], dim=1)))
        for level in (3, 2, 1):
            laterals[level - 1] = laterals[level - 1] + resized(laterals[level], laterals[level - 1])
        outputs = [conv(lateral) for conv, lateral in zip(self.fpn_convs, laterals[:-1], strict=True)]
        outputs.append(laterals[-1])
        return self.conv_seg(self.fpn_bottleneck(torch.cat([resized(out, outputs[0]) for out in outputs], dim=1)))


class FCNHead(nn.Module):
    def __init__(self, inputs: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList([ConvModule(inputs, width, 3)])
        self.conv_seg = nn.Conv2d(width, num_classes, 1)


def mmseg_upernet(backbone: str, width: int = 32) -> nn.ModuleDict:
    """A model by mmsegmentation's names; its deep stem is one sequence that ends in what timm calls bn1."""
    body: Any = timm.create_model(backbone, features_only=True, out_indices=(1, 2, 3, 4))
    channels = body.feature_info.channels()
    heads = {"decode_head": UPerHead(channels, width, 3), "auxiliary_head": FCNHead(channels[2], width, 3)}
    return nn.ModuleDict({"backbone": body, **heads})


def mmseg_state_dict(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    if "backbone.conv1.0.weight" not in state:
        return state
    stem = {"backbone.conv1.": "backbone.stem.", "backbone.bn1.": "backbone.stem.7."}
    for old, new in stem.items():
        state = {new + name.removeprefix(old) if name.startswith(old) else name: t for name, t in state.items()}
    return state


@pytest.mark.parametrize(
    ("backbone", "auxiliary"), [("resnet18", False), ("test_resnet", True), ("test_resnet", False)]
)
def test_a_upernet_of_mmsegmentation(images: Tensor, backbone: str, auxiliary: bool) -> None:
    theirs: Any = lived_in(mmseg_upernet(backbone))
    ours = create_model("uper", backbone=backbone, width=32, num_classes=3, auxiliary=auxiliary)
    done = convert_weights(ours, mmseg_state_dict(theirs))
    theirs["decode_head"].bottleneck = ours.decoder.context.fuse
    ours.eval()
    with torch.inference_mode():
        features = theirs["backbone"](images)
        close(ours.forward_head(ours.forward_features(images)), theirs["decode_head"](features))
        if auxiliary:
            head = theirs["auxiliary_head"]
            close(ours.auxiliary(features[2]), head.conv_seg(head.convs[0](features[2])))
    assert len(done.fresh) == 5
    assert all(name.startswith("decoder.context.fuse.") for name in done.fresh)
    left_out = ("decode_head.bottleneck.",) if auxiliary else ("decode_head.bottleneck.", "auxiliary_head.")
    assert all(name.startswith(left_out) for name in done.left_out)


def test_a_ddsm_model_takes_what_it_shares() -> None:
    ours = create_model("uper_ddsm_tiny", num_classes=3)
    done = convert_weights(ours, mmseg_state_dict(mmseg_upernet("test_resnet")))
    assert any(name.startswith("decoder.fusions.") for name in done.fresh)
    assert any(name.startswith("decode_head.fpn_convs.") for name in done.left_out)
    assert "classifier.weight" in done.mapped.values()


# -- what is refused, before anything changes


def spoiled(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[], dict[str, Tensor]]:
    return lambda: change(dict(mmseg_state_dict(mmseg_upernet("test_resnet"))))


REFUSED: dict[str, tuple[Callable[[], dict[str, Tensor]], object]] = {
    "another library": (
        lambda: {"features.0.weight": torch.zeros(3)},
        None,
    ),
    "nothing": (dict, None),
    "another decoder": (
        lambda: smp.DeepLabV3Plus("resnet18", encoder_weights=None, decoder_channels=32).state_dict(),
        "deeplabv3plus",
    ),
    "an unknown layer": (
        spoiled(lambda s: {**s, "decode_head.x.weight": torch.zeros(1)}),
        ["decode_head.x.weight"],
    ),
    "a missing layer": (
        spoiled(lambda s: {n: t for n, t in s.items() if not n.startswith("decode_head.fpn_convs.1.")}),
        {"missing": 5},
    ),
    "another width": (
        lambda: mmseg_state_dict(mmseg_upernet("test_resnet", 16)),
        {"of another shape": 56},
    ),
    "another backbone": (
        lambda: mmseg_state_dict(mmseg_upernet("resnet18")),
        {"missing": 28, "unexpected": 64, "of another shape": 54},
    ),
    "other classes": (
        spoiled(lambda s: {**s, "decode_head.conv_seg.bias": torch.zeros(150)}),
        {"of another shape": 1},
    ),
    "NaN": (
        spoiled(lambda s: {**s, "decode_head.conv_seg.bias": torch.full((3,), torch.nan)}),
        {"with NaN or infinity": 1},
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_correspond_is_refused(case: str) -> None:
    make, got = REFUSED[case]
    model = create_model("uper_tiny", num_classes=3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with raises(CheckpointError, kind="weights-mismatch", got=got):
        convert_weights(model, make())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert "converted" not in model.pretrained_cfg


# -- files


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {f"module.{name}": tensor for name, tensor in state.items()}},
    ],
)
def test_a_pytorch_file(tmp_path: Path, wrap: Callable[[dict[str, Tensor]], object]) -> None:
    state = timm.create_model("test_resnet").state_dict()
    torch.save(wrap(state), tmp_path / "theirs.pth")
    model = create_model("uper_tiny")
    convert_weights(model, tmp_path / "theirs.pth")
    assert torch.equal(model.state_dict()["backbone.body.layer4.0.conv1.weight"], state["layer4.0.conv1.weight"])
    safetensors.torch.save_file(state, tmp_path / "theirs.safetensors")
    assert read_checkpoint(tmp_path / "theirs.safetensors").keys() == state.keys()
    save_pretrained(model, tmp_path / "ours")
    assert "converted" not in create_model(f"local-dir:{tmp_path / 'ours'}", pretrained=True).pretrained_cfg


class Bomb:
    """Unpickling it would leave a file behind."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path("exploded").write_text, ("boom",)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({"state_dict": Bomb()}, protocol=2),
        b"",
        b"PK\x03\x04nothing",
        pickle.dumps({"weights": [1, 2]}, protocol=2),
    ],
)
def test_a_file_that_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs.pth").write_bytes(content)
    with raises(CheckpointError, kind="unsafe-file", path="theirs.pth"):
        read_checkpoint(tmp_path / "theirs.pth")
    assert not Path("exploded").exists()
    with raises(FileNotFoundError, kind="missing-file", path="absent.pth"):
        read_checkpoint(tmp_path / "absent.pth")


def test_bytes_that_changed_on_the_way(tmp_path: Path) -> None:
    """The reader fails for them in many ways, also in such as elsewhere stand for bugs."""
    path, chance = tmp_path / "theirs.pth", random.Random(0)
    torch.save({"weight": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    refused = 0
    for _ in range(600):
        changed = bytearray(content[: chance.choice((None, chance.randrange(len(content))))])
        if changed:
            changed[chance.randrange(min(len(changed), 900))] = chance.randrange(256)
        path.write_bytes(changed)
        try:
            assert all(isinstance(tensor, Tensor) for tensor in read_checkpoint(path).values())
        except CheckpointError:
            refused += 1
    assert refused > 300


def test_more_than_tensors_in_a_pytorch_file(tmp_path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(2), "note": "text"}}, tmp_path / "theirs.pth")
    with raises(CheckpointError, kind="checkpoint", path="theirs.pth"):
        read_checkpoint(tmp_path / "theirs.pth")
