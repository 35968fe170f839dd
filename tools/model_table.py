"""Write the tables of models, recipes and errors between their markers in the pages: ``python tools/model_table.py``.

Parameters and multiply-adds are counted on the meta device, so this needs neither weights nor memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ddsm_zoo.config import WeightsSpec
from ddsm_zoo.errors import SECTIONS
from ddsm_zoo.models import complexity
from ddsm_zoo.training.recipe import Recipe, list_recipes
from ddsm_zoo.utils.files import write_text
from ddsm_zoo.zoo import registry, table

ROOT = Path(__file__).resolve().parents[1]
SIZE = (1024, 1024)
BEGIN = "<!-- table:begin -->"
END = "<!-- table:end -->"

count = functools.cache(complexity)  # names that differ in their weights alone share a config


def figures(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{value:.2f} {name}" for name, value in metrics.items()) or "-"


def status(entry: table.Entry, weights: WeightsSpec) -> str:
    if not entry.published:
        return "not published yet"
    return "in the package" if weights.uri.startswith("bundled:") else "on the Hub"


def row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def size_cells(entry: table.Entry) -> list[str]:
    cost = count(entry.config, SIZE)
    return [f"{cost.params / 1e6:.2f}", f"{cost.multiply_adds / 1e9:.1f}"]


def task_table(entries: Sequence[table.Entry]) -> list[str]:
    """One row per model with a task: size, scores and where its weights are."""
    lines = [
        row(["Model", "Data", "Params (M)", "Multiply-adds (G)", "Paper (%)", "Measured (%)", "Weights", "Recipe"]),
        row(["---", "---", "---:", "---:", "---", "---", "---", "---"]),
    ]
    for entry in entries:
        if entry.weights is not None:
            spec = entry.weights
            scores = [figures(spec.published), figures(spec.metrics)]
            recipe = f"`{spec.recipe}`" if spec.recipe else "-"
            name = f"`{entry.name}`"
            lines.append(row([name, spec.dataset, *size_cells(entry), *scores, status(entry, spec), recipe]))
    return lines


def architecture_table(entries: Sequence[table.Entry]) -> list[str]:
    """One row per model without a task: the sizes, at the class count of its config."""
    lines = [
        row(["Architecture", "Backbone", "Classes", "Params (M)", "Multiply-adds (G)"]),
        row(["---", "---", "---:", "---:", "---:"]),
    ]
    for entry in entries:
        if entry.weights is None:
            config = entry.config
            cells = [f"`{entry.name}`", f"`{config.backbone}`", str(config.num_classes), *size_cells(entry)]
            lines.append(row(cells))
    return lines


def published_page(entries: Sequence[table.Entry]) -> list[str]:
    return task_table([entry for entry in entries if entry.published])


def full_page(entries: Sequence[table.Entry]) -> list[str]:
    return ["## Models with a task", "", *task_table(entries), "", "## Architectures", "", *architecture_table(entries)]


def recipe_table() -> list[str]:
    """One row per recipe of the package, with what its table ``about`` says."""
    lines = [row(["Recipe", "For", "Hardware", "Duration", "Score to expect"]), row(["---"] * 5)]
    for name in list_recipes():
        about = Recipe.load(name).about
        lines.append(row([f"`{name}`", about.purpose, about.hardware, about.duration, about.score]))
    return lines


def error_tables() -> list[str]:
    """One section per group of errors, with one row per kind."""
    lines = []
    for title, kinds in SECTIONS.items():
        lines += [f"## {title}", "", row(["Kind", "Meaning, and what to do"]), row(["---"] * 2)]
        lines += [row([f"`{kind}`", text]) for kind, text in kinds.items()]
        lines.append("")
    return lines[:-1]


PAGES: dict[str, Callable[[Sequence[table.Entry]], list[str]]] = {
    "README.md": published_page,
    "docs/models.md": full_page,
    "docs/recipes.md": lambda _: recipe_table(),
    "docs/troubleshooting.md": lambda _: error_tables(),
}


def replace_table(text: str, table: Sequence[str], where: str) -> str:
    """``text`` with everything between the two markers replaced by ``table``; ValueError where they are missing."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{where} lacks the markers {BEGIN} and {END}, in this order: put them where the table goes")
    return "\n".join([head + begin, "", *table, "", end + tail])


def main() -> None:
    entries = sorted(map(registry.find, registry.list_models()), key=lambda entry: (not entry.published, entry.name))
    for name, page in PAGES.items():
        path = ROOT / name
        write_text(path, replace_table(path.read_text(encoding="utf-8"), page(entries), name))
        print(f"wrote the table in {name}")


if __name__ == "__main__":
    main()
