"""Table of models: every name with its architecture and the weights that exist for it.

A name is ``{decoder}[_{fusion}]_{backbone}[_{dataset}]``. A name without a data set is an architecture without task
weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ddsm_zoo.config import DDSMConfig, ModelConfig, Preprocess, WeightsSpec
from ddsm_zoo.errors import ArgumentError
from ddsm_zoo.labels import CAMVID, CITYSCAPES, LabelSpace
from ddsm_zoo.utils.registry import DECODERS, FUSIONS, Registry

ORGANIZATION = "ddsm-zoo"


@dataclass(frozen=True, kw_only=True)
class BackboneRow:
    """A timm backbone with its decoder geometry and the input that its ImageNet weights expect.

    ``preprocess`` is None if timm knows the input.
    """

    timm_name: str
    width: int = 256
    fused_stages: tuple[int, ...] = (2, 3, 4)
    ddsm: DDSMConfig = field(default_factory=DDSMConfig)
    separable: bool = False
    preprocess: Preprocess | None = field(default_factory=Preprocess)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row of the table.

    ``preprocess`` is that of the weights or, without weights, of the backbone. It is None if only timm knows it.
    """

    name: str
    config: ModelConfig
    weights: WeightsSpec | None = None
    preprocess: Preprocess | None = field(default_factory=Preprocess)

    @property
    def published(self) -> bool:
        """Return True if the task weights can be loaded now. Only published weights have a pinned hash."""
        return self.weights is not None and self.weights.sha256 is not None


_HALF = Preprocess(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def _lite(number: int) -> BackboneRow:
    return BackboneRow(timm_name=f"tf_efficientnet_lite{number}.in1k", width=128, separable=True, preprocess=_HALF)


BACKBONES: Registry[BackboneRow] = Registry(
    "backbone",
    {
        "r18": BackboneRow(timm_name="resnet18d.ra2_in1k"),
        "r34": BackboneRow(timm_name="resnet34d.ra2_in1k"),
        # The geometry of the paper's Table 1: two modules, 9 pixels, 9 channels.
        "r50": BackboneRow(timm_name="resnet50s.gluon_in1k", fused_stages=(2, 3)),
        # The geometry of the paper's Tables 3 and 4: three modules, 25 pixels, 9 channels.
        "r101": BackboneRow(timm_name="resnet101s.gluon_in1k", ddsm=DDSMConfig(pixels=25)),
        "lite0": _lite(0),
        "lite1": _lite(1),
        "lite2": _lite(2),
        # For tests: a whole model in well under a million parameters.
        "tiny": BackboneRow(
            timm_name="test_resnet.r160_in1k",
            width=32,
            ddsm=DDSMConfig(width=16, pool=4, positions=8),
            preprocess=_HALF,
        ),
    },
)
DATASETS: Mapping[str, LabelSpace] = {"cityscapes": CITYSCAPES, "camvid": CAMVID}
DOMAINS: Mapping[str, str] = {"cityscapes": "street scenes", "camvid": "street scenes"}


def architecture(
    decoder: str, fusion: str, backbone: str, *, num_classes: int = len(CITYSCAPES), auxiliary: bool = False
) -> ModelConfig:
    """Build the config of a decoder, fusion and backbone in the zoo's geometry.

    ``backbone`` is a name in `BACKBONES` or a timm name. A timm name gets the geometry of `ModelConfig`'s defaults.
    """
    config = build_config(decoder, fusion, backbone_row(backbone))
    return dataclasses.replace(config, num_classes=num_classes, auxiliary=auxiliary)


def backbone_row(backbone: str) -> BackboneRow:
    """Return the row of a short name, or a row for a timm name in the geometry of `ModelConfig`'s defaults."""
    return BACKBONES.get(backbone, BackboneRow(timm_name=backbone, preprocess=None))


def build_config(decoder: str, fusion: str, row: BackboneRow) -> ModelConfig:
    """Build the architecture in the row's geometry. Raises ConfigError for an invalid row."""
    return ModelConfig(
        decoder=decoder,
        backbone=row.timm_name,
        fusion=fusion,
        width=row.width,
        # DeepLabV3+ forms only x~2, whatever the backbone.
        fused_stages=(2,) if decoder == "deeplabv3plus" else row.fused_stages,
        ddsm=row.ddsm,
        separable=row.separable,
    )


def backbone_preprocess(timm_name: str) -> Preprocess | None:
    """Return the input that a backbone's ImageNet weights expect, None if timm knows it."""
    known = (row.preprocess for row in BACKBONES.values() if row.timm_name == timm_name)
    return next(known, None)


# Decoders and fusions of the paper's tables, listed here so that their modules are not imported
_DECODERS, _FUSIONS = ("uper", "deeplabv3plus"), ("none", "dcn", "ddsm_s", "ddsm_c", "ddsm")


def families() -> dict[str, tuple[str, str]]:
    """Return decoder and fusion by family name (``uper``, ``uper_dcn``, ...), registered ones included.

    Raises ValueError if two pairs make the same name.
    """
    decoders, fusions = dict.fromkeys((*_DECODERS, *DECODERS)), dict.fromkeys((*_FUSIONS, *FUSIONS))
    known: dict[str, tuple[str, str]] = {}
    for decoder in decoders:
        for fusion in fusions:
            name = decoder if fusion == "none" else f"{decoder}_{fusion}"
            if name in known:
                raise ambiguous(name)
            known[name] = (decoder, fusion)
    return known


def ambiguous(name: str) -> ArgumentError:
    return ArgumentError(
        f"{name!r} names two things with what was registered, as fusions that end in a backbone's name do; "
        "register yours under another name",
        name=name,
        kind="bad-name",
    )


@dataclass(frozen=True, kw_only=True)
class Task:
    """Facts shared by the task weights of several architectures: data set, size (H, W), recipe, the paper's metric."""

    dataset: str
    size: tuple[int, int]
    recipe: str
    metric: str
    suffix: str | None = None


# Each task with its architectures and the scores that the paper publishes, None if it has none.
_TASKS: tuple[tuple[Task, Mapping[str, float | None]], ...] = (
    (  # Table 1
        Task(dataset="cityscapes", size=(1024, 2048), recipe="cityscapes_r50", metric="miou (val)"),
        {
            "uper_r50": 78.39,
            "uper_dcn_r50": 78.51,
            "uper_ddsm_s_r50": 79.25,
            "uper_ddsm_c_r50": 78.99,
            "uper_ddsm_r50": 79.65,
            "deeplabv3plus_r50": 77.76,
            "deeplabv3plus_dcn_r50": 78.09,
            "deeplabv3plus_ddsm_s_r50": 78.34,
            "deeplabv3plus_ddsm_c_r50": 78.22,
            "deeplabv3plus_ddsm_r50": 78.57,
        },
    ),
    (  # Table 3
        Task(
            dataset="cityscapes",
            size=(1024, 2048),
            recipe="cityscapes_r101",
            metric="miou (test, multi-scale)",
        ),
        {"uper_r101": None, "uper_dcn_r101": None, "uper_ddsm_r101": 81.7},
    ),
    (  # Table 4, from ImageNet
        Task(dataset="camvid", size=(720, 960), recipe="camvid_r101", metric="miou (test)"),
        {"uper_ddsm_r101": 77.1},
    ),
    (  # Table 4, from Cityscapes
        Task(
            dataset="camvid",
            size=(720, 960),
            recipe="camvid_r101_cs",
            metric="miou (test)",
            suffix="camvid_cs",
        ),
        {"uper_ddsm_r101": 80.6},
    ),
)


@dataclass(frozen=True, kw_only=True)
class Publication:
    """Task weights on the Hub: commit, SHA-256 of the file and the scores measured on it."""

    commit: str
    sha256: str
    metrics: Mapping[str, float]


# By model name. `ddsm-zoo push` prints the commit (docs/publishing.md).
_PUBLICATIONS: Mapping[str, Publication] = {}
# Weights inside the package, the only published task model today
_BUNDLED = WeightsSpec(
    uri="bundled:uper_ddsm_lite0_camvid.safetensors",
    dataset="camvid",
    labels=CAMVID,
    preprocess=dataclasses.replace(_HALF, size=(360, 480), min_size=(480, 640)),
    sha256="bba05a3370234983bcd6d8ef3728b68a20ab4542550e3b9327261c650e39fff4",
    license="apache-2.0",
    recipe="camvid_lite0_both",
    metrics={"miou (val)": 77.17},
    domain=DOMAINS["camvid"],
    familiar=0.9,  # docs/models/uper_ddsm_lite0_camvid.md says how it was chosen
    taps_on_map={
        "decoder.fusions.0.spatial": 0.9117,
        "decoder.fusions.0.channel": 0.9167,
        "decoder.fusions.1.spatial": 0.9775,
        "decoder.fusions.1.channel": 0.9184,
        "decoder.fusions.2.spatial": 0.9788,
        "decoder.fusions.2.channel": 0.9097,
    },
)


def architectures() -> Iterator[Entry]:
    for family, (decoder, fusion) in families().items():
        for backbone, row in BACKBONES.items():
            yield Entry(
                name=f"{family}_{backbone}",
                config=architecture(decoder, fusion, backbone),
                preprocess=row.preprocess,
            )


def _task_entry(entry: Entry, suffix: str, weights: WeightsSpec) -> Entry:
    return Entry(
        name=f"{entry.name}_{suffix}",
        config=dataclasses.replace(entry.config, num_classes=len(weights.labels)),
        weights=weights,
        preprocess=weights.preprocess,
    )


def _at_commit(weights: WeightsSpec, publication: Publication | None) -> WeightsSpec:
    if publication is None:
        return weights
    uri = f"{weights.uri}@{publication.commit}"
    return dataclasses.replace(weights, uri=uri, sha256=publication.sha256, metrics=publication.metrics)


def build_table(publications: Mapping[str, Publication] = _PUBLICATIONS) -> dict[str, Entry]:
    table = {entry.name: entry for entry in architectures()}
    for task, figures in _TASKS:
        suffix = task.suffix or task.dataset
        for name, figure in figures.items():
            weights = WeightsSpec(
                uri=f"hf-hub:{ORGANIZATION}/{name}_{suffix}",
                dataset=task.dataset,
                labels=DATASETS[task.dataset],
                domain=DOMAINS[task.dataset],
                preprocess=dataclasses.replace(table[name].preprocess or Preprocess(), size=task.size),
                license="apache-2.0",
                recipe=task.recipe,
                published={} if figure is None else {task.metric: figure},
            )
            weights = _at_commit(weights, publications.get(f"{name}_{suffix}"))
            entry = _task_entry(table[name], suffix, weights)
            table[entry.name] = entry
    bundled = _task_entry(table["uper_ddsm_lite0"], "camvid", _BUNDLED)
    return table | {bundled.name: bundled}
