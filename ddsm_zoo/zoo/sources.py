"""Sources of a model: the table's entry of a name or an address, and the weights that it leads to."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from ddsm_zoo.config import WeightsSpec
from ddsm_zoo.errors import UserError
from ddsm_zoo.hub.address import is_uri, public_uri
from ddsm_zoo.hub.config_file import Manifest
from ddsm_zoo.hub.download import fetch
from ddsm_zoo.hub.faults import HubError
from ddsm_zoo.hub.model_files import CONFIG_FILE, WEIGHTS_FILE
from ddsm_zoo.hub.safetensors_io import read_tensors
from ddsm_zoo.models import hub_uri, packaged_weights, saving
from ddsm_zoo.utils.files import CheckpointError, LocalFile
from ddsm_zoo.zoo import registry, table

logger = logging.getLogger(__name__)

# `fetch` with the user's cache, token and offline settings bound
Fetch = Callable[..., list[LocalFile]]


class WeightsNotFoundError(UserError, LookupError):
    """Raised for task weights that are not published yet. Names the recipe that makes them and models with weights."""

    kind = "no-task-weights"


def look_up(model_name: str) -> table.Entry:
    """Look up the architecture, weights and input of a name or an address. Downloads at most a config.

    Raises UnknownModelError, HubError, FileNotFoundError, and ConfigError for an invalid config.
    """
    return resolve(model_name, None, False, fetch)[0]


def require_weights(model_name: str, backbone: str | None = None) -> None:
    """Raise WeightsNotFoundError for an architecture without task weights."""
    if resolve(model_name, backbone, False, fetch)[0].weights is None:
        raise WeightsNotFoundError(
            f"{model_name} is an architecture without task weights and cannot predict; "
            f"use a model whose weights exist: {_available()}",
            kind="no-task-weights",
            name=model_name,
        )


def fetcher(
    cache_dir: str | os.PathLike[str] | None, token: str | bool | None, local_files_only: bool, force_download: bool
) -> Fetch:
    """Return `fetch` with the user's settings."""
    return partial(
        fetch,
        cache_dir=cache_dir,
        token=token,
        local_files_only=local_files_only,
        force_download=force_download,
    )


def resolve(name: str, backbone: str | None, pretrained: bool, fetch: Fetch) -> tuple[table.Entry, LocalFile | None]:
    """Return the entry for a name or an address, and for an address its weights file if ``pretrained``."""
    if not is_uri(name):
        if "/" in name or ":" in name:
            shown = public_uri(name)[:80]
            hint = f"did you mean local-dir:{shown}?" if Path(name[:1000]).is_dir() else "check the spelling"
            raise registry.UnknownModelError(
                f"{shown!r} names no model, expected a name of `ddsm-zoo list`, local-dir:FOLDER or hf-hub:ORG/NAME; "
                f"{hint} In Python, checkpoint_path takes a file of weights",
                name=public_uri(name),
            )
        return registry.find(name, backbone), None
    wanted = (CONFIG_FILE, WEIGHTS_FILE) if pretrained else (CONFIG_FILE,)
    files = fetch(name, *wanted)
    manifest = saving.read_saved(files[0].path)
    weights = dataclasses.replace(manifest.pretrained_cfg, uri=name)
    entry = table.Entry(
        name=manifest.architecture, config=manifest.model_args, weights=weights, preprocess=weights.preprocess
    )
    return registry.with_backbone(entry, backbone), files[1] if pretrained else None


def fetch_imagenet_weights(timm_name: str, fetch: Fetch) -> Mapping[str, Tensor]:
    """Load the ImageNet weights of a timm name, from an installed package or from the Hub."""
    logger.info("ImageNet weights for %s; decoder and classifier are freshly initialized", timm_name)
    packaged = packaged_weights(timm_name)
    if packaged is not None:
        return packaged
    (file,) = fetch(hub_uri(timm_name), WEIGHTS_FILE)
    return read_tensors(file.path)


def fetch_task_weights(entry: table.Entry, task: WeightsSpec, fetch: Fetch) -> tuple[LocalFile, WeightsSpec]:
    """Download the task weights, and describe them as their repository on the Hub does."""
    hosted = task.uri.startswith("hf-hub:")
    wanted = (CONFIG_FILE, WEIGHTS_FILE) if hosted else (WEIGHTS_FILE,)
    try:
        *config, file = fetch(task.uri, *wanted, sha256=task.sha256)
    except HubError as error:
        if entry.published:
            raise
        raise WeightsNotFoundError(
            f"the weights of {entry.name} are not published yet ({error}); train them with recipe {task.recipe}, "
            f"or use a model whose weights exist: {_available()}",
            kind="weights-not-published",
            name=entry.name,
        ) from error
    return file, _as_published(task, saving.read_saved(config[0].path)) if config else task


def _as_published(task: WeightsSpec, manifest: Manifest) -> WeightsSpec:
    """Return what the repository's own config says of the weights. The hash and the scores of a pin come first."""
    own = manifest.pretrained_cfg
    if len(own.labels) != len(task.labels):
        raise CheckpointError(
            f"{task.uri} holds a model of {len(own.labels)} classes, expected the {len(task.labels)} of {task.dataset}",
            kind="classes-differ",
            got=len(own.labels),
            expected=len(task.labels),
        )
    return dataclasses.replace(
        own,
        uri=task.uri,
        sha256=task.sha256 or own.sha256,
        metrics=task.metrics or own.metrics,
        published=task.published,
        recipe=own.recipe or task.recipe,
    )


def location(file: LocalFile, task: WeightsSpec | None) -> str:
    """Name a weights file in errors: by the address that was asked for, not by its copy in the cache."""
    remote = task is not None and task.uri.startswith(("hf-hub:", "https:"))
    return public_uri(task.uri) if remote and task is not None else str(file.path)


def _available() -> str:
    return ", ".join(registry.list_pretrained()) or "none so far"
