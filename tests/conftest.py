"""One environment for every test: few threads, caches of its own, the same examples in CI each time."""

from __future__ import annotations

import os
import re
import tempfile

# huggingface_hub and torch.hub read these when they are imported: no test sees, fills or empties the caches
# of the person who runs it, and none sends that person's token anywhere. Unless told not to, the Hub's client also asks
# its makers' server what to add to the header of every request, whichever server that goes to.
_caches = tempfile.TemporaryDirectory(prefix="ddsm-zoo-tests-")
os.environ.update(HF_HOME=f"{_caches.name}/huggingface", TORCH_HOME=f"{_caches.name}/torch")
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
for _name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
    os.environ.pop(_name, None)

# Triton's kernels run in its interpreter, on tensors on the CPU; it is chosen when they are imported.
os.environ["TRITON_INTERPRET"] = "1"

import pytest  # noqa: E402 - after the environment is set
import torch  # noqa: E402 - after the environment is set
from hypothesis import settings  # noqa: E402 - after the environment is set

import ddsm_zoo.models.segmenter  # noqa: E402, F401 - fills the registries of decoders and fusions
from ddsm_zoo.data.kinds import DATASET_KINDS  # noqa: E402 - after the environment is set
from ddsm_zoo.utils.registry import DECODERS, FUSIONS  # noqa: E402 - after the environment is set
from ddsm_zoo.zoo import registry, table  # noqa: E402 - after the environment is set

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")

# Tensors in tests are small: sharing them between threads costs more than it saves, far more on a busy machine.
torch.set_num_threads(1)


# Tensors and arrays that are compared within a tolerance, because the order of a sum belongs to the processor.
WITHIN_TOLERANCE = re.compile(r"\b(assert_close|assert_allclose|allclose|rounding_error)\(")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as numeric the tests of every module that compares tensors or arrays within a tolerance."""
    numeric = {path: WITHIN_TOLERANCE.search(path.read_text("utf-8")) for path in {item.path for item in items}}
    for item in items:
        if numeric[item.path]:
            item.add_marker("numeric")


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Each test draws the same random numbers whichever tests ran before it."""
    torch.manual_seed(0)


# What the package registers itself; a fixture of a whole module may register more before a test begins
_REGISTRIES = {id(each): (each, dict(each)) for each in (DATASET_KINDS, DECODERS, FUSIONS, table.BACKBONES)}
_TABLE = dict(registry._TABLE)


@pytest.fixture(autouse=True)
def nothing_stays_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test or a page of the documentation registers is gone after it."""
    for each, known in _REGISTRIES.values():
        monkeypatch.setattr(each, "_known", dict(known))
    monkeypatch.setattr(registry, "_TABLE", dict(_TABLE))


def pytest_unconfigure() -> None:
    _caches.cleanup()
