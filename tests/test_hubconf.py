"""torch.hub on this checkout: it lists, documents and builds the zoo's models."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import ddsm_zoo
from ddsm_zoo.utils.files import sha256_of
from tests.support.errors import raises

ROOT = Path(__file__).parents[1]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A GitHub address whose archive torch.hub has downloaded already: this checkout."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "someone_ddsm-zoo_main").symlink_to(ROOT, target_is_directory=True)
    return "someone/ddsm-zoo:main"


def test_every_model_is_listed(repository: str) -> None:
    found = torch.hub.list(repository, skip_validation=True, trust_repo=True, verbose=False)
    assert found == ddsm_zoo.list_models()


def test_each_entry_point_is_documented(repository: str) -> None:
    text = torch.hub.help(repository, "uper_ddsm_r101_cityscapes", skip_validation=True, trust_repo=True)
    assert "resnet101s.gluon_in1k" in text
    assert "pretrained" in text


def test_a_model_is_built() -> None:
    model = torch.hub.load(str(ROOT), "uper_ddsm_tiny", source="local", num_classes=4, pixels=25)
    assert model.config.ddsm.pixels == 25
    assert model.eval()(torch.rand(1, 3, 20, 30)).shape == (1, 4, 20, 30)


FROM_GITHUB = """
import json, sys, torch

torch.hub._git_archive_link = lambda owner, name, ref: sys.argv[1]
torch.hub.set_dir(sys.argv[2])
repository = "someone/ddsm-zoo:main"
names = torch.hub.list(repository, skip_validation=True, trust_repo=True, verbose=False)
text = torch.hub.help(repository, "uper_ddsm_tiny", skip_validation=True, trust_repo=True)
model = torch.hub.load(repository, "uper_ddsm_lite0_camvid", pretrained=True, skip_validation=True, trust_repo=True)
import ddsm_zoo.zoo.factory
print(json.dumps([names, text, ddsm_zoo.zoo.factory.__file__, model.pretrained_cfg["sha256"]]))
"""


def test_the_archive_that_github_makes_of_a_repository(tmp_path: Path) -> None:
    """torch.hub fetches it, unpacks it and runs what is inside, with this checkout out of the way."""
    archive = tmp_path / "archive.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("someone-ddsm-zoo-0123abc/", "")
        for path in (ROOT / "hubconf.py", ROOT / "README.md", *sorted((ROOT / "ddsm_zoo").rglob("*"))):
            if path.is_file() and "__pycache__" not in path.parts:
                file.write(path, f"someone-ddsm-zoo-0123abc/{path.relative_to(ROOT).as_posix()}")
    command = [sys.executable, "-c", FROM_GITHUB, archive.as_uri(), str(tmp_path / "hub")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    names, text, module, sha256 = json.loads(done.stdout.splitlines()[-1])
    assert names == ddsm_zoo.list_models()
    assert "pretrained" in text
    assert Path(module) == tmp_path / "hub" / "someone_ddsm-zoo_main" / "ddsm_zoo" / "zoo" / "factory.py"
    assert sha256 == sha256_of(ROOT / "ddsm_zoo" / "weights" / "uper_ddsm_lite0_camvid.safetensors")


@pytest.mark.parametrize(
    ("name", "options"),
    [("uper_ddsm.tiny", {}), ("uper_ddsm", {"backbone": "test_resnet.r160_in1k", "width": 16})],
    ids=["a dotted name", "a family"],
)
def test_names_that_are_not_listed(repository: str, name: str, options: dict[str, object]) -> None:
    model = torch.hub.load(str(ROOT), name, source="local", num_classes=4, **options)
    assert model.config.fusion == "ddsm"
    assert "pretrained" in torch.hub.help(repository, name, skip_validation=True, trust_repo=True)


@pytest.mark.parametrize(("name", "kind"), [("uper_dsm_tiny", "unknown-model"), ("uper_ddsm", "no-backbone")])
def test_a_name_that_is_wrong(name: str, kind: str) -> None:
    with raises(LookupError, kind=kind, name=name):
        torch.hub.load(str(ROOT), name, source="local")


def test_errors_pass_through() -> None:
    with raises(TypeError, kind="unknown-option", name="pixls"):
        torch.hub.load(str(ROOT), "uper_ddsm_tiny", source="local", pixls=25)


def test_the_dependencies_are_what_building_a_model_imports() -> None:
    hubconf = torch.hub._import_module("hubconf", str(ROOT / "hubconf.py"))
    visited: set[str] = set()
    found: set[str] = set()
    waiting = ["ddsm_zoo.zoo.factory"]
    while waiting:
        module = waiting.pop()
        visited.add(module)
        for name in imports_of(module):
            if name.split(".")[0] != "ddsm_zoo":
                found.add(name.split(".")[0])
            elif name not in visited:
                waiting.append(name)
    assert hubconf.dependencies == sorted(found - set(sys.stdlib_module_names))


def imports_of(module: str) -> set[str]:
    """The modules that a module of ours imports when it is imported itself."""
    path = ROOT / Path(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    names: set[str] = set()
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Import):
            names |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom) and statement.module is not None:
            names.add(statement.module)
            names |= {f"{statement.module}.{alias.name}" for alias in statement.names}
    return {name for name in names if not name.startswith("ddsm_zoo") or is_module(name)}


def is_module(name: str) -> bool:
    path = ROOT / Path(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()
