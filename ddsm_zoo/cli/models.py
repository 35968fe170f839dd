"""Commands ``list`` and ``info``: list models and describe one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ddsm_zoo.cli.app import JsonOption, app
from ddsm_zoo.cli.console import check_output, print_lines, print_table, report
from ddsm_zoo.errors import ArgumentError

if TYPE_CHECKING:
    from ddsm_zoo.zoo.table import Entry


@app.command("list")
def list_models(
    pattern: Annotated[str, typer.Argument(help="Filter with shell wildcards, in quotes.", metavar="[FILTER]")] = "*",
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Only models with published weights.")] = False,
    json: JsonOption = None,
) -> None:
    """List the models, one name per line.

    Examples:

    ddsm-zoo list "uper_ddsm*"

    ddsm-zoo list --pretrained
    """
    from ddsm_zoo.zoo import registry

    names = registry.list_models(pattern, pretrained=pretrained)
    if not names:
        kind = "model with weights" if pretrained else "model"
        raise registry.UnknownModelError(f"no {kind} matches {pattern!r}; `ddsm-zoo list` has all names", name=pattern)
    report(names, json)
    if json != "-":
        print_lines(names)


@app.command()
def info(
    model: Annotated[
        str, typer.Argument(help="Model: a name from `ddsm-zoo list`, hf-hub:ORG/REPO or local-dir:PATH.")
    ],
    size: Annotated[str, typer.Option(help="Image size for the multiply-adds: one number, or HxW.")] = "1024",
    json: JsonOption = None,
) -> None:
    """Show architecture, parameters, multiply-adds and weights of a model, without downloading its weights.

    Example:

    ddsm-zoo info uper_ddsm_r101_cityscapes --size 1024x2048 --json -
    """
    height, width = parse_size(size)
    check_output(json)
    from ddsm_zoo.models import complexity
    from ddsm_zoo.utils.plain_data import to_dict
    from ddsm_zoo.zoo.sources import look_up

    entry = look_up(model)
    cost = complexity(entry.config, (height, width))
    figures = {
        "model": entry.name,
        "params": cost.params,
        "multiply_adds": cost.multiply_adds,
        "size": [height, width],
        "config": to_dict(entry.config),
        "weights": to_dict(entry.weights) if entry.weights else None,
        "pretrained": entry.published,
    }
    report(figures, json)
    if json == "-":
        return
    rows = [
        ("parameters", f"{cost.params / 1e6:.2f} M"),
        ("multiply-adds", f"{cost.multiply_adds / 1e9:.1f} G at {height} x {width}"),
        ("backbone", entry.config.backbone),
        ("classes", str(entry.config.num_classes)),
        ("weights", describe_weights(entry)),
    ]
    if entry.weights and entry.weights.threshold is not None:
        rows.append(("threshold of the sigmoid", f"{entry.weights.threshold:g}"))
    if entry.weights:
        rows += [(f"{name}, measured", f"{value:g}") for name, value in entry.weights.metrics.items()]
        rows += [(f"{name}, in the paper", f"{value:g}") for name, value in entry.weights.published.items()]
    print_table(entry.name, ("", ""), rows)


def describe_weights(entry: Entry) -> str:
    if entry.weights is None:
        return "none, this is an architecture"
    if entry.published:
        return f"{entry.weights.dataset}, {entry.weights.uri}"
    return f"{entry.weights.dataset}, not published yet: train them with recipe {entry.weights.recipe}"


def parse_size(text: str) -> tuple[int, int]:
    """Parse ``1024`` or ``1024x2048`` as (H, W). Raises ValueError."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdigit() and 0 < int(side) <= 65536 for side in sides):
        raise ArgumentError.of(
            "size", text, "pixels such as 1024, or height x width such as 1024x2048", shown=repr(text)
        )
    return int(sides[0]), int(sides[-1])
