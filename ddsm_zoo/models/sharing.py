"""What users of Hugging Face's model mixin call on the class: from_pretrained, save_pretrained, push_to_hub."""

from __future__ import annotations

import importlib
import os
from typing import Any


class Shareable:
    """The three methods, each of them the function of the same name in ``ddsm_zoo.zoo.factory``.

    The factory stands above the models and builds them, so a model looks it up by name, and only when it is asked.
    """

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], *, revision: str | None = None, **options: Any) -> Any:
        """The model in a folder, at ``org/name`` on the Hub, or of a name in the zoo, in evaluation mode."""
        return _factory().from_pretrained(source, revision=revision, **options)

    def save_pretrained(self, directory: str | os.PathLike[str], **options: Any) -> None:
        """Write the model to a folder, as `ddsm_zoo.save_pretrained` does."""
        _factory().save_pretrained(self, directory, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Publish the model, as `ddsm_zoo.push_to_hub` does; the address that gives these weights again."""
        address: str = _factory().push_to_hub(self, repo_id, **options)
        return address


def _factory() -> Any:
    return importlib.import_module("ddsm_zoo.zoo.factory")
