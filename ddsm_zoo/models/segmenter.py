"""Segmentation model, composed from its parts, with the methods that timm's models have."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddsm_zoo.config import ModelConfig, Provenance
from ddsm_zoo.errors import ArgumentError
from ddsm_zoo.hub.download import fetch
from ddsm_zoo.hub.model_files import write_files
from ddsm_zoo.hub.state_dict import unwrap_names
from ddsm_zoo.hub.upload import push
from ddsm_zoo.layers import ConvNormAct, crop, resize
from ddsm_zoo.layers.group_norm import use_group_norm
from ddsm_zoo.layers.refinement import Refinement
from ddsm_zoo.models import saving
from ddsm_zoo.models.backbone import (
    Backbone,
    dropped_activations,
    group_parameters,
    imagenet_preprocess,
    sync_batch_norm,
)
from ddsm_zoo.models.decoders import find_decoder
from ddsm_zoo.models.folding import fold_norms
from ddsm_zoo.models.saving import family
from ddsm_zoo.ops.traced import is_traced

if TYPE_CHECKING:
    from typing_extensions import Self


class Segmenter(nn.Module):
    """Segmentation model: backbone, decoder and classifier.

    Attributes:
        provenance: Record of the weights.
        num_classes: Number of logits per pixel.
        auxiliary: Training-time head on x4, or None.
        refinement: Residual of the logits at stride 2, None with ``stride=4``.
        encoder_frozen: True after a call of `freeze_encoder`.
        fused: True after a call of `fuse`.

    Args:
        config: Architecture.
        backbone_weights: State dict of the whole timm model. Without it, all weights are random.

    Raises:
        UnregisteredError: The decoder or fusion is not registered.
        BackboneError: The backbone is unknown or unsuitable.
    """

    def __init__(self, config: ModelConfig, *, backbone_weights: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        decoder = find_decoder(config.decoder)
        self.config = config
        self.num_classes = config.num_classes
        self.provenance = Provenance(name=family(config), preprocess=imagenet_preprocess(config.backbone))
        self.backbone = Backbone(
            config.backbone,
            in_chans=config.in_chans,
            output_stride=decoder.output_stride,
            args=config.backbone_args,
            weights=backbone_weights,
            finer=config.stride == 2,
        )
        self.decoder = decoder(self.backbone.channels, config)
        finer = self.backbone.finer
        self.refinement = None if finer is None else Refinement(finer, config.width)
        self.dropout = nn.Dropout2d(config.dropout)
        self.classifier = _classifier(config.width, config.num_classes)
        self.auxiliary = _auxiliary(self.backbone, config) if config.auxiliary else None
        self.encoder_frozen = False
        self.fused = False
        if config.norm == "group":
            use_group_norm(self)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        strict: bool = True,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> Self:
        """Load a saved model from a folder or from ``org/name`` on the Hub, in evaluation mode.

        `ddsm_zoo.from_pretrained` also takes names of the zoo, and other classes, channels and settings.

        Args:
            source: Folder written by `save_pretrained`, ``org/name``, or an ``hf-hub:`` or ``local-dir:`` URI.
            revision: Branch, tag or commit of the repository.
            strict: Refuse weights that do not fit exactly. False loads those that fit, and warns.
            cache_dir: The Hub's cache, by default the Hub client's own.
            token: Token of the Hub. Unless given, the client's own. False sends none.
            local_files_only: Take the files from the cache and ask no server.
            force_download: Download the files even if the cache has them.

        Raises:
            HubError, FileNotFoundError: The files are unavailable.
            ConfigError, CheckpointError: They are not a model's, or do not match one another.
        """
        download = partial(
            fetch,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        return saving.load(cls, saving.as_uri(source, revision), download, strict=strict)

    def save_pretrained(self, directory: str | os.PathLike[str], *, half: bool = False) -> None:
        """Write ``model.safetensors``, ``README.md`` and ``config.json``, see `ddsm_zoo.save_pretrained`."""
        write_files(directory, saving.pack(self, half=half))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        token: str | None = None,
        half: bool = False,
    ) -> str:
        """Publish the model, see `ddsm_zoo.push_to_hub`. Returns the URI that loads these weights again."""
        files = saving.pack(self, half=half, uri=f"hf-hub:{repo_id}")
        return push(repo_id, files, private=private, revision=revision, create_pr=create_pr, token=token)

    @property
    def pretrained_cfg(self) -> Mapping[str, Any]:
        """View of ``provenance`` as read-only data with timm's keys."""
        return MappingProxyType(self.provenance.to_cfg())

    def forward(self, x: Tensor, auxiliary: bool = False) -> Tensor | dict[str, Tensor]:
        """Compute logits.

        Args:
            x: Preprocessed images (N, in_chans, H, W), any H, W >= 1.
            auxiliary: Return the logits of the auxiliary head too, for the training loss. As a part of this call, it
                works under DistributedDataParallel, DataParallel and torch.compile.

        Returns:
            Logits (N, num_classes, H, W). With ``auxiliary``, a dict like torchvision's, of these logits as "out" and
                the head's, of the same shape, as "aux".

        Raises:
            ValueError: The images have another shape or type, or the model was built without ``auxiliary=True``.
        """
        if not auxiliary:
            return self._classify(self.backbone(self._pad(x)), x)
        if self.auxiliary is None:
            raise ArgumentError("this model has no auxiliary head; build it with auxiliary=True", name="auxiliary")
        levels = self.backbone(self._pad(x))
        return {"out": self._classify(levels, x), "aux": self._to_input(self.auxiliary(levels[-2]), x)}

    def forward_auxiliary(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute both logits of ``model(x, auxiliary=True)``. Under a data-parallel wrapper use that call."""
        both = self(x, auxiliary=True)
        return both["out"], both["aux"]

    def forward_features(self, x: Tensor) -> Tensor:
        """Compute the decoder's features, without the refinement of ``stride=2``.

        Args:
            x: Preprocessed images (N, in_chans, H, W), padded to whole strides here.

        Returns:
            Features (N, width, H/4, W/4) of the padded image.
        """
        features: Tensor = self.decoder(self.backbone(self._pad(x))[-4:])
        return features

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Classify features (N, width, h, w) to logits (N, num_classes, h, w).

        Args:
            features: Features from `forward_features`.
            pre_logits: Return the input of the classifier instead of logits.
        """
        features = self.dropout(features)
        return features if pre_logits else self.classifier(features)

    def get_classifier(self) -> nn.Module:
        """Return the final 1 x 1 convolution."""
        return self.classifier

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the final convolutions by freshly initialized ones for ``num_classes`` classes.

        ``provenance`` then has neither labels nor scores, because the meaning of the new classes is unknown.
        """
        self.config = dataclasses.replace(self.config, num_classes=num_classes)
        self.num_classes = num_classes
        like = self.classifier.weight
        self.classifier = _classifier(self.config.width, num_classes).to(like.device, like.dtype)
        if self.auxiliary is not None:
            self.auxiliary = _auxiliary(self.backbone, self.config).to(like.device, like.dtype)
        self.provenance = self.provenance.without_classes(("classifier.weight", "classifier.bias"))

    def freeze_encoder(self) -> None:
        """Keep the backbone as it is in training: no gradients, and evaluation mode, also after a call of `train`.

        Make the optimizer afterwards, from the parameters with ``requires_grad``.
        """
        self._set_encoder(frozen=True)

    def unfreeze_encoder(self) -> None:
        """Train the backbone again: the inverse of `freeze_encoder`."""
        self._set_encoder(frozen=False)

    def train(self, mode: bool = True) -> Self:
        """Set training mode, or evaluation mode. A frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.encoder_frozen:
            self.backbone.eval()
        return self

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a state dict, as `torch.nn.Module.load_state_dict` does.

        Prefixes that DataParallel, DistributedDataParallel, torch.compile and weight averages add to names are removed.
        """
        return super().load_state_dict(unwrap_names(state_dict), strict=strict, assign=assign)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the backbone's activations in the backward pass instead of keeping them.

        Raises:
            BackboneError: timm cannot do it for this network.
        """
        self.backbone.set_grad_checkpointing(enable)

    def sync_batch_norm(self) -> None:
        """Compute batch statistics over the images of all GPUs from now on, for distributed training.

        Use it in place of ``torch.nn.SyncBatchNorm.convert_sync_batchnorm``, which would drop the activations that
        timm's networks have inside their batch norm.
        """
        sync_batch_norm(self)

    def fuse(self) -> Segmenter:
        """Fold batch norm into the preceding convolutions, in place, and drop the auxiliary head.

        Use it for inference. The logits change only by rounding (below 1e-4), and memory is read and written fewer
        times. You can neither train nor save the model afterwards.

        Returns:
            The model itself, in evaluation mode.
        """
        self.eval()
        self.auxiliary = None
        self.fused = True
        like = self.classifier.weight
        fold_norms(self, torch.zeros(1, self.config.in_chans, 64, 64, device=like.device, dtype=like.dtype))
        return self

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Return a function from a parameter's name to its layer, from input to output, as timm's functions take it.

        The layers of the backbone are those of timm's own matcher for the network. The decoder and the classifier are
        the last layer.

        Args:
            coarse: Take stages as layers instead of blocks.
        """
        layers = {f"backbone.{name}": layer for name, layer in self.backbone.layers(coarse).items()}
        last = max(layers.values()) + 1
        return lambda name: layers.get(name, last)

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters without weight decay: positional tables, as timm's optimizers ask."""
        return {
            f"{path}.{name}"
            for path, module in self.named_modules()
            if module is not self and hasattr(module, "no_weight_decay")
            for name in module.no_weight_decay()
        }

    def layer_groups(self) -> list[list[str]]:
        """Return the names of the parameters from input to output: the stem, each backbone stage, and the rest."""
        return group_parameters(self, self.group_matcher(coarse=True))

    @property
    def default_cfg(self) -> Mapping[str, Any]:
        """Old timm name of ``pretrained_cfg``."""
        return self.pretrained_cfg

    @property
    def feature_info(self) -> Any:
        """timm's description of the backbone's feature levels: channels, reduction, module."""
        return self.backbone.feature_info

    def _classify(self, levels: Sequence[Tensor], x: Tensor) -> Tensor:
        """Compute logits of the input's size from the backbone's levels."""
        *finer, x2, x3, x4, x5 = levels
        features = self.decoder((x2, x3, x4, x5))
        # first, so that hooks of the classifier see the logits last
        residual = None if self.refinement is None else self.refinement(features, finer[0], self.classifier)
        logits = self._to_input(self.forward_head(features), x)
        return logits if residual is None else logits + self._to_input(residual, x)

    def _set_encoder(self, *, frozen: bool) -> None:
        self.encoder_frozen = frozen
        self.backbone.requires_grad_(not frozen)
        self.train(self.training)

    def _check(self, x: Tensor) -> None:
        """Raise ValueError unless ``x`` is a batch of preprocessed images, and if the backbone lost activations."""
        shape, channels = tuple(x.shape), self.config.in_chans
        if len(shape) != 4 or shape[1] != channels or 0 in shape[2:]:
            hints = {channels in shape[-1:]: "; permute the channels to the front", len(shape) == 3: "; add [None]"}
            expected = f"(N, {channels}, H, W)"
            raise ArgumentError(
                f"got images {shape}, expected {expected}{hints.get(True, '')}", name="x", got=shape, kind="array"
            )
        if not x.is_floating_point():
            raise ArgumentError(
                f"got images of {x.dtype}, expected floating-point numbers, normalized as "
                "create_transform(resolve_data_config(model)) does",
                name="x",
                got=str(x.dtype),
                kind="array",
            )
        broken = dropped_activations(self.backbone)
        if broken:
            raise ArgumentError(
                f"{len(broken)} layers of the backbone lost their activation, the first is {broken[0]}: "
                "torch.nn.SyncBatchNorm.convert_sync_batchnorm drops it; build the model again and call "
                "model.sync_batch_norm()",
                name=broken[0],
                got=len(broken),
            )

    def _pad(self, x: Tensor) -> Tensor:
        """Extend the bottom and right edges to multiples of the deepest stride.

        Otherwise one level rounds up and the one below it does not, and resizing between them shifts the image.
        Training crops are whole strides, so the network has never seen such a shift (docs/method.md has its cost).
        """
        if not is_traced():  # a tracer would take each comparison for a condition on sizes
            self._check(x)
        height, width = self._padded(x)
        return F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2]))

    def _padded(self, x: Tensor) -> tuple[int, int]:
        """Return the size (H, W) to which ``x`` is extended."""
        multiple = self.backbone.multiple
        # written as a multiple, so that a tracer for any size sees that it is one
        return (x.shape[-2] + multiple - 1) // multiple * multiple, (x.shape[-1] + multiple - 1) // multiple * multiple

    def _to_input(self, logits: Tensor, x: Tensor) -> Tensor:
        """Resize logits to the padded input and crop them to the input."""
        return crop(resize(logits, self._padded(x)), (x.shape[-2], x.shape[-1]))


def _classifier(width: int, num_classes: int) -> nn.Conv2d:
    """Build a 1 x 1 convolution whose logits start at unit size.

    With logits near zero, FCN's initialization, the rows of the rarer classes first all learn that they are rare. They
    then stay parallel for hundreds of steps (docs/method.md).
    """
    classifier = nn.Conv2d(width, num_classes, 1)
    nn.init.kaiming_normal_(classifier.weight)
    assert classifier.bias is not None
    nn.init.zeros_(classifier.bias)
    return classifier


def _auxiliary(backbone: Backbone, config: ModelConfig) -> nn.Module:
    """Build the FCN head on x4 that PSPNet and UPerNet train with."""
    head = nn.Sequential(
        ConvNormAct(backbone.channels[2], config.width, 3, separable=config.separable),
        nn.Dropout2d(config.dropout),
        _classifier(config.width, config.num_classes),
    )
    if config.norm == "group":
        use_group_norm(head)
    return head
