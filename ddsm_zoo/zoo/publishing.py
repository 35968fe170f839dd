"""Describe the weights of a model, save it and publish it."""

from __future__ import annotations

import os

from ddsm_zoo.config import Provenance, WeightsSpec
from ddsm_zoo.errors import ArgumentError
from ddsm_zoo.models import Segmenter, unwrap


def describe_weights(model: Segmenter, weights: WeightsSpec) -> None:
    """Record facts about the weights in ``model.provenance``, for example after your own training.

    `save_pretrained` writes them to the config and the model card.

    Args:
        model: Model whose provenance is replaced in place.
        weights: Description of the weights. Its ``labels`` need one name for each class of the model.

    Raises:
        ValueError: The number of labels differs from the model's number of classes.
    """
    if len(weights.labels) != model.num_classes:
        raise ArgumentError(
            f"got {len(weights.labels)} labels for a model of {model.num_classes} classes, expected one each",
            kind="classes-differ",
            got=len(weights.labels),
            expected=model.num_classes,
        )
    model.provenance = Provenance(
        name=model.provenance.name, preprocess=weights.preprocess, labels=weights.labels, weights=weights
    )


def save_pretrained(model: Segmenter, directory: str | os.PathLike[str], *, half: bool = False) -> None:
    """Write ``model.safetensors``, ``config.json`` and ``README.md`` (the model card) to a folder.

    ``local-dir:FOLDER`` loads the same model again. The auxiliary head is left out because only training uses it. The
    files describe the weights by ``model.provenance``.

    Args:
        model: Model to save. torch.compile, DataParallel, DistributedDataParallel and averages such as AveragedModel
            and timm's ModelEmaV3 are unwrapped.
        directory: Target folder. It is created if missing.
        half: Store kernels in 16 bits, for half the size. They load as rounded float32.

    Raises:
        OutputError: A file cannot be written.
        ConfigError: ``model.provenance`` holds an invalid value.
        CheckpointError: The model has tensors that could not be loaded again.
        TypeError: There is no model of this package inside ``model``.

    Examples:
        >>> import ddsm_zoo, tempfile
        >>> model = ddsm_zoo.create_model("uper_ddsm_tiny", num_classes=7)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ddsm_zoo.save_pretrained(model, folder)
        ...     again = ddsm_zoo.from_pretrained(folder)
        >>> again.num_classes
        7
    """
    unwrap(model).save_pretrained(directory, half=half)


def push_to_hub(
    model: Segmenter,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
    half: bool = False,
) -> str:
    """Publish the files of `save_pretrained` on the Hub in one commit.

    Args:
        model: Model to publish, bare or wrapped as for `save_pretrained`.
        repo_id: Repository ``org/name``. It is created if missing.
        private: Visibility of a new repository. Unless given, the Hub's default.
        revision: Branch to commit to. Unless given, main.
        create_pr: Open a pull request instead of committing to the branch.
        token: Access token. Unless given, the Hub client's own.
        half: Store kernels in 16 bits, for half the size.

    Returns:
        The ``hf-hub:`` address of the commit. `create_model` takes it and always loads exactly these weights.

    Raises:
        HubError: The upload failed.
        ValueError: ``repo_id`` is malformed, or options exclude each other.
        Exception: Anything that `save_pretrained` raises.
    """
    return unwrap(model).push_to_hub(
        repo_id, private=private, revision=revision, create_pr=create_pr, token=token, half=half
    )
