"""Model card: the README.md of a saved model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.utils import yaml_dump

from ddsm_zoo.config import DEFAULT_THRESHOLD, ModelConfig, WeightsSpec
from ddsm_zoo.hub.config_file import Manifest

_TASK = "image-segmentation"


def render_card(manifest: Manifest, uri: str) -> str:
    """Render Markdown with the YAML front matter that the Hub reads: license, task, results, recipe and usage.

    ``uri`` is the model name that loads these weights.
    """
    return "\n".join([*_front_matter(manifest), *_body(manifest), *_usage(uri)]) + "\n"


def _front_matter(manifest: Manifest) -> Iterator[str]:
    weights = manifest.pretrained_cfg
    results = list(_measured(weights)) or None
    card = ModelCardData(
        license=weights.license,
        library_name="ddsm-zoo",
        pipeline_tag=_TASK,
        tags=["semantic-segmentation", "ddsm-zoo", "pytorch"],
        datasets=[_identifier(weights.dataset)],
        model_name=_title(manifest) if results else None,
        eval_results=results,
    )
    yield "---"
    # Not card.to_yaml(), which strips white space that may belong to the last name
    yield yaml_dump(card.to_dict(), sort_keys=False).rstrip("\n")  # type: ignore[no-untyped-call]
    yield "---"


def _identifier(dataset: str) -> str:
    """Convert a data set's name to an identifier. The Hub refuses cards with other names, such as that of a folder."""
    if re.fullmatch(r"[\w-]+/[\w.-]+", dataset, re.ASCII):
        return dataset
    return re.sub(r"[^\w.]+", "-", dataset, flags=re.ASCII).strip("-.") or "unknown"


def _measured(weights: WeightsSpec) -> Iterator[EvalResult]:
    """Convert the scores measured on these weights to the form in which the Hub compares models."""
    for name, value in weights.metrics.items():
        yield EvalResult(
            task_type=_TASK,
            dataset_type=_identifier(weights.dataset),
            dataset_name=weights.dataset,
            metric_type="mean_iou",
            metric_name=name,
            metric_value=round(value, 4),
        )


def _body(manifest: Manifest) -> Iterator[str]:
    config, weights = manifest.model_args, manifest.pretrained_cfg
    yield f"\n# {_title(manifest)}\n"
    classes = "1 class" if manifest.num_classes == 1 else f"{manifest.num_classes} classes"
    yield (
        f"Semantic segmentation into {classes}: decoder `{config.decoder}`, fusion `{config.fusion}`, "
        f"backbone `{config.backbone}`. Trained on: {weights.dataset}.\n"
    )
    yield f"Classes: {', '.join(manifest.label_names)}.\n"
    if manifest.num_classes == 1:
        threshold = DEFAULT_THRESHOLD if weights.threshold is None else weights.threshold
        yield f"One logit per pixel: masks hold 1 where its sigmoid exceeds the threshold {threshold:g}, else 0.\n"
    if weights.domain:
        yield f"Trained for {weights.domain}. On other images it predicts the same classes, with no meaning.\n"
    yield "## Results\n"
    yield from _results("measured on these weights", weights.metrics)
    yield from _results("published in the paper, not measured on these weights", weights.published)
    if not weights.metrics and not weights.published:
        yield "No scores recorded."
    if weights.taps_on_map:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in weights.taps_on_map.items())
        yield f"\nShare of sampling taps inside the feature map (taps outside read zeros): {shares}."
    if weights.start:
        changes = ", ".join(f"`{name} = {json.dumps(value)}`" for name, value in weights.changes.items())
        yield f"\nTraining started from: {weights.start}. Changes to the recipe: {changes or 'none'}."
    yield f"\nRecipe: {f'`{weights.recipe}`' if weights.recipe else 'not recorded'}. License: {weights.license}."


def _title(manifest: Manifest) -> str:
    """Return the model's name for weights of the zoo. Your own weights, which have a start, have none."""
    weights = manifest.pretrained_cfg
    if weights.start is None:
        return manifest.architecture
    return f"{weights.dataset}: {_architecture(manifest.model_args)}"


def _architecture(config: ModelConfig) -> str:
    """Return decoder, fusion and backbone in words."""
    fusion = "" if config.fusion == "none" else f" with {config.fusion}"
    return f"{config.decoder}{fusion} on {config.backbone}"


def _results(kind: str, figures: Mapping[str, float]) -> Iterator[str]:
    for measure, figure in figures.items():
        yield f"- {measure}: {figure:g} ({kind})"


def _usage(uri: str) -> Iterator[str]:
    yield "\n## Use\n"
    yield "```python"
    yield "import ddsm_zoo\n"
    yield f"model = ddsm_zoo.create_model({json.dumps(uri)}, pretrained=True)"
    yield 'ddsm_zoo.Predictor(model)("street.jpg").overlay().save("overlay.png")'
    yield "```"
