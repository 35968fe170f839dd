"""Convert weights of other libraries to this package's models.

ResNets of timm and torchvision become backbones. UPerNet and DeepLabV3+ of segmentation_models_pytorch (smp) and
UPerNet of mmsegmentation become whole models, except for the layers that differ (docs/weights.md). State dicts of this
package's own models are copied unchanged, also from a Lightning checkpoint or a wrapped model. Every tensor is
either copied, known to have no counterpart, or rejected with an error.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddsm_zoo.errors import MissingFileError
from ddsm_zoo.hub.safetensors_io import abbreviate, read_tensors
from ddsm_zoo.hub.state_dict import REFINEMENT, count_faults, mismatches, unwrap_names
from ddsm_zoo.models import Segmenter
from ddsm_zoo.models.deeplabv3plus import LOW_WIDTH
from ddsm_zoo.utils.files import CheckpointError

# Regular expression for their name and its replacement with ours, None if we have no such layer.
Rule = tuple[str, str | None]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """Result of a weight conversion, tensor by tensor.

    Attributes:
        source: Kind of checkpoint that was recognized.
        mapped: Tensor names of this model by the checkpoint's names, for all copied tensors.
        left_out: Tensors of the checkpoint that were not copied.
        fresh: Tensors of this model that were freshly initialized.
    """

    source: str
    mapped: Mapping[str, str]
    left_out: tuple[str, ...]
    fresh: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON and for ``model.provenance.converted``."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        fresh, left_out = (", ".join(_modules(names)) or "nothing" for names in (self.fresh, self.left_out))
        return (
            f"{self.source}: {len(self.mapped)} tensors taken over; freshly initialized: {fresh}; left out: {left_out}"
        )


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """Layer names of one architecture in one library.

    Attributes:
        mark: Prefix of a tensor name that only this kind has.
        fresh: Parts of our model that this kind has no weights for.
        optional: Parts that our model may lack.
        encoder: Prefix of the encoder's tensors, if encoders have names of their own.
        fusing: Our layer that receives concatenated features. Our order is the reverse of theirs.
        blocks: Widths of these features in their order. None is the decoder's width.
    """

    name: str
    mark: str
    rules: tuple[Rule, ...]
    decoder: str | None = None
    fresh: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    encoder: str = ""
    fusing: str = ""
    blocks: tuple[int | None, ...] = ()


def convert_weights(model: Segmenter, checkpoint: str | os.PathLike[str] | Mapping[str, Tensor]) -> Conversion:
    """Copy another library's weights into ``model``.

    The model must have the backbone and width of the checkpoint. A ResNet checkpoint fills the backbone only. The model
    is unchanged after an error.

    Args:
        model: Model to fill in place. Its ``provenance.converted`` records the conversion.
        checkpoint: State dict, safetensors file or local PyTorch file. No code in the file is executed.

    Returns:
        The tensors that were copied, left out and freshly initialized.

    Raises:
        CheckpointError: The checkpoint is damaged or of an unknown kind, has unknown, missing or wrongly shaped
            tensors, or belongs to another decoder.
        FileNotFoundError: The file does not exist.
    """
    if isinstance(checkpoint, Mapping):
        where, tensors = "the state dict", dict(checkpoint)
    else:
        where, tensors = os.fspath(checkpoint), read_checkpoint(Path(checkpoint).expanduser())
    tensors = dict(unwrap_names(tensors))
    kind, prefix = _recognize(tensors, where)
    others = tuple(name for name in tensors if not name.startswith(prefix))
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name not in others}
    if kind.decoder not in (None, model.config.decoder):
        raise CheckpointError(
            f"{where} is a {kind.name}, expected weights for the decoder {model.config.decoder}; "
            f"create the model with the decoder {kind.decoder}",
            kind="weights-mismatch",
            name=where,
            got=kind.decoder,
            expected=model.config.decoder,
        )
    expected = model.state_dict()
    mapped = _translate(kind, tensors, expected, where, model.config.backbone)
    given = {ours: _reordered(kind, ours, tensors[name], model.config.width) for name, ours in mapped.items()}
    optional = tuple(part for part in (*kind.fresh, REFINEMENT) if not any(ours.startswith(part) for ours in given))
    needed = {
        name: tensor
        for name, tensor in expected.items()
        if name in given or not (name.startswith(optional) or name.endswith("num_batches_tracked"))
    }
    problems = mismatches(needed, given)
    if problems:
        raise CheckpointError(
            f"{where}, a {kind.name}, does not fit the model: {'; '.join(problems)}; "
            "check the backbone, width, separable and num_classes it was created with",
            kind="weights-mismatch",
            name=where,
            got=count_faults(needed, given),
        )
    model.load_state_dict(given, strict=False)
    done = Conversion(
        source=kind.name,
        mapped=mapped,
        left_out=(*(name for name in tensors if name not in mapped), *others),
        fresh=tuple(name for name in expected if name not in given and not name.endswith("num_batches_tracked")),
    )
    model.provenance = dataclasses.replace(model.provenance, converted=done.to_dict())
    logger.info("%s", done)
    return done


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the state dict in a safetensors file or, with any other suffix, in a PyTorch file. No code is executed.

    Raises:
        FileNotFoundError: The file does not exist.
        CheckpointError: The file is damaged or is not a state dict.
    """
    if path.suffix == ".safetensors":
        return read_tensors(path)
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist, expected a checkpoint", path=path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # damaged bytes can raise any exception
        raise CheckpointError(
            f"{path} is damaged or holds more than tensors, which is not opened ({type(error).__name__}); "
            "save its state dict alone, best with safetensors.torch.save_file",
            kind="unsafe-file",
            path=path,
        ) from error
    while isinstance(content, Mapping):
        inner = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not content or not all(map(_is_named_tensor, content.items())):
        raise CheckpointError(f"{path} holds no state dict, expected tensors by name", path=path)
    return dict(content)


def _is_named_tensor(item: tuple[object, object]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _recognize(tensors: Mapping[str, Tensor], where: str) -> tuple[_Kind, str]:
    """Return the kind of the checkpoint, and the attribute of a Lightning module that its tensors lie in, if any."""
    for prefix, kind in itertools.product(("", *_ATTRIBUTES), _KINDS):
        if any(name.startswith(prefix + kind.mark) for name in tensors):
            return kind, prefix
    known = ", ".join(kind.name for kind in _KINDS)
    raise CheckpointError(
        f"{where} is none of {known}; its tensors begin with {abbreviate(list(tensors)) or 'nothing'}",
        kind="weights-mismatch",
        name=where,
    )


def _translate(
    kind: _Kind, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str, backbone: str
) -> dict[str, str]:
    """Map their tensor names to ours, without those that have no counterpart.

    Raises CheckpointError for unknown names.
    """
    mapped: dict[str, str] = {}
    unknown: list[str] = []
    for name in tensors:
        rule = next((rule for rule in kind.rules if re.fullmatch(rule[0], name)), None)
        if rule is None:
            unknown.append(name)
            continue
        ours = None if rule[1] is None else re.sub(rule[0], rule[1], name)
        if ours is not None and (ours in expected or not ours.startswith(kind.optional)):
            mapped[name] = ours
    if kind.encoder:
        _check_encoder(kind, mapped, unknown, expected, where, backbone)
    if unknown:
        raise CheckpointError(
            f"{where} has {len(unknown)} tensors that no {kind.name} has: {abbreviate(unknown)}",
            kind="weights-mismatch",
            name=where,
            got=unknown,
        )
    return mapped


def _check_encoder(
    kind: _Kind,
    mapped: Mapping[str, str],
    unknown: Sequence[str],
    expected: Mapping[str, Tensor],
    where: str,
    backbone: str,
) -> None:
    """Raise CheckpointError, with the encoder as the cause, unless the checkpoint has the model's backbone."""
    theirs = {ours: name for name, ours in mapped.items() if ours.startswith("backbone.")}
    needed = [name for name in expected if name.startswith("backbone.") and not name.endswith("num_batches_tracked")]
    extra = [name for name in unknown if name.startswith(kind.encoder)]
    extra += [name for ours, name in theirs.items() if ours not in expected]
    missing = [name for name in needed if name not in theirs]
    if extra or missing:
        first = f"it has {extra[0]}" if extra else f"it lacks {missing[0]}"
        raise CheckpointError(
            f"{where}, a {kind.name}, has another encoder than timm's {backbone}: {first}; pass the backbone of the "
            "checkpoint. Of smp's encoders, ResNets and those of timm (tu-) can be taken over",
            kind="weights-mismatch",
            name=where,
            got=first,
            expected=backbone,
        )


def _reordered(kind: _Kind, ours: str, tensor: Tensor, width: int) -> Tensor:
    """Reorder the input channels where our concatenation order is the reverse of theirs."""
    if not kind.fusing or not ours.startswith(kind.fusing) or tensor.ndim != 4:
        return tensor
    sizes = [width if block is None else block for block in kind.blocks]
    # a depthwise kernel has one output channel for each input channel
    dimension = 0 if ours.endswith("depthwise.weight") else 1
    if tensor.shape[dimension] != sum(sizes):
        return tensor
    return torch.cat(torch.split(tensor, sizes, dimension)[::-1], dimension)


def _modules(names: Iterable[str]) -> Iterator[str]:
    """Yield each module that the tensors belong to once, with its number of tensors."""
    for module, group in itertools.groupby(names, lambda name: name.rpartition(".")[0]):
        yield f"{module} ({len(list(group))})"


def _block(theirs: str, ours: str, conv: str, norm: str) -> tuple[Rule, Rule]:
    """Rules for a convolution and its norm, called ``conv`` and ``norm`` in the checkpoint."""
    scale_and_shift = (rf"{theirs}\.{norm}\.(?P<rest>\w+)", rf"{ours}.norm.\g<rest>")
    return (rf"{theirs}\.{conv}\.weight", f"{ours}.conv.weight"), scale_and_shift


def _resnet(prefix: str) -> tuple[Rule, ...]:
    return ((rf"{prefix}((?:conv1|bn1|layer\d)\..+)", r"backbone.body.\1"), (rf"{prefix}fc\..+", None))


# smp's tu-resnet18 has a timm network as encoder.model. Other encoders may pad otherwise than timm's under equal names
_SMP_ENCODER: tuple[Rule, ...] = (*_resnet(r"encoder\."), (r"encoder\.model\.(.+)", r"backbone.body.\1"))


def _separable(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Rules for smp's convolution and norm, dense or depthwise-separable as the tensors have it."""
    depthwise = (rf"{theirs}\.0\.0\.weight", f"{ours}.depthwise.weight")
    return depthwise, (rf"{theirs}\.0\.1\.weight", f"{ours}.conv.weight"), *_block(theirs, ours, "0", "1")


_SMP_HEAD: Rule = (r"segmentation_head\.0\.(weight|bias)", r"classifier.\1")

_SMP_UPERNET = _Kind(
    name="smp UPerNet",
    mark="decoder.fpn_lateral_blocks.",
    decoder="uper",
    rules=(
        *_SMP_ENCODER,
        *_block(r"decoder\.psp\.blocks\.(\d)\.1", r"decoder.context.branches.\1", "0", "1"),
        *_block(r"decoder\.fpn_lateral_blocks\.(\d)\.conv_norm_relu", r"decoder.laterals.\1", "0", "1"),
        *_block(r"decoder\.fpn_conv_blocks\.(\d)", r"decoder.smoothings.\1", "0", "1"),
        *_block(r"decoder\.fusion_block", "decoder.fuse", "0", "1"),
        _SMP_HEAD,
        (r"decoder\.psp\.out_conv\..+", None),  # 3 x 3, ours is 1 x 1
        (r"decoder\.feature_norms\..+", None),
    ),
    fresh=("decoder.context.fuse.", "decoder.fusions.", "auxiliary."),
    optional=("decoder.smoothings.",),
    encoder="encoder.",
    fusing="decoder.fuse.",
    blocks=(None, None, None, None),
)

_SMP_DEEPLAB = _Kind(
    name="smp DeepLabV3+",
    mark="decoder.aspp.0.convs.",
    decoder="deeplabv3plus",
    rules=(
        *_SMP_ENCODER,
        *_block(r"decoder\.aspp\.0\.convs\.4", "decoder.context.image", "1", "2"),
        *_separable(r"decoder\.aspp\.0\.convs\.([0-3])", r"decoder.context.branches.\1"),
        *_block(r"decoder\.aspp\.0\.project", "decoder.context.fuse", "0", "1"),
        *_block(r"decoder\.block1", "decoder.lateral", "0", "1"),
        *_separable(r"decoder\.block2", "decoder.refine.0"),
        _SMP_HEAD,
        (r"decoder\.aspp\.[12]\..+", None),  # one more convolution before the concatenation; ours is after it
    ),
    fresh=("decoder.refine.1.", "auxiliary."),
    encoder="encoder.",
    fusing="decoder.refine.0.",
    blocks=(None, LOW_WIDTH),
)

_MMSEG_UPERNET = _Kind(
    name="mmsegmentation UPerNet",
    mark="decode_head.lateral_convs.",
    decoder="uper",
    rules=(
        (r"backbone\.stem\.7\.(\w+)", r"backbone.body.bn1.\1"),
        (r"backbone\.stem\.([0-6]\..+)", r"backbone.body.conv1.\1"),
        *_resnet(r"backbone\."),
        *_block(r"decode_head\.psp_modules\.(\d)\.1", r"decoder.context.branches.\1", "conv", "bn"),
        *(
            rule
            for theirs, ours in enumerate((2, 1, 0))  # from stage 2 up, ours from stage 4 down
            for rule in (
                *_block(rf"decode_head\.lateral_convs\.{theirs}", f"decoder.laterals.{ours}", "conv", "bn"),
                *_block(rf"decode_head\.fpn_convs\.{theirs}", f"decoder.smoothings.{ours}", "conv", "bn"),
            )
        ),
        *_block(r"decode_head\.fpn_bottleneck", "decoder.fuse", "conv", "bn"),
        (r"decode_head\.conv_seg\.(weight|bias)", r"classifier.\1"),
        *_block(r"auxiliary_head\.convs\.0", "auxiliary.0", "conv", "bn"),
        (r"auxiliary_head\.conv_seg\.(weight|bias)", r"auxiliary.2.\1"),
        (r"decode_head\.bottleneck\..+", None),  # 3 x 3, ours is 1 x 1
    ),
    fresh=("decoder.context.fuse.", "decoder.fusions.", "auxiliary."),
    optional=("decoder.smoothings.", "auxiliary."),
    fusing="decoder.fuse.",
    blocks=(None, None, None, None),
)

_RESNET = _Kind(
    name="ResNet",
    mark="layer1.0.conv1.",
    rules=_resnet(""),
    fresh=("decoder.", "classifier.", "auxiliary."),
)

_OWN = _Kind(
    name="ddsm-zoo model",
    mark="backbone.body.",
    rules=((r"(?:backbone|decoder|classifier|auxiliary)\..+", r"\g<0>"),),
    fresh=("auxiliary.",),
    optional=("auxiliary.",),
)

_KINDS = (_OWN, _SMP_UPERNET, _SMP_DEEPLAB, _MMSEG_UPERNET, _RESNET)
# Usual names of the network in a LightningModule, whose state dict may also hold a loss or metrics
_ATTRIBUTES = ("model.", "net.", "network.", "module.", "segmenter.", "model.module.", "net.module.")
