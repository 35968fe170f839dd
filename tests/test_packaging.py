"""What users install: the wheel as built from the sdist, unpacked and run away from the checkout."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import markdown
import numpy as np
import pytest
from PIL import Image

import ddsm_zoo
from ddsm_zoo.data.scenes.render import render_scene

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
BUNDLED = "uper_ddsm_lite0_camvid"
MEGABYTE = 10**6


def run(*command: str, cwd: Path, **environment: str) -> str:
    """Standard output of ``command``; a failure shows all that it said."""
    environment = os.environ | environment
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist, so that the sdist is known to be whole."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT), cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel and nothing of the checkout."""
    target = tmp_path_factory.mktemp("site")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, "--no-index", "--no-deps", "--target", str(target), str(wheel), cwd=target)
    return target


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = {name for name in names if ".dist-info/" not in name}
    on_disk = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "ddsm_zoo").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert shipped == on_disk
    assert "ddsm_zoo/py.typed" in shipped
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_bundled_weights_travel_in_the_wheel(wheel: Path) -> None:
    info = zipfile.ZipFile(wheel).getinfo(f"ddsm_zoo/weights/{BUNDLED}.safetensors")
    assert 0 < info.file_size <= 20 * MEGABYTE


def test_the_sdist_holds_what_a_contributor_needs(wheel: Path) -> None:
    (sdist,) = wheel.parent.glob("*.tar.gz")
    listing = run(sys.executable, "-m", "tarfile", "--list", str(sdist), cwd=wheel.parent)
    names = {line.strip().partition("/")[2] for line in listing.splitlines()}
    assert names >= {"pyproject.toml", "Makefile", "hubconf.py", "README.md", "LICENSE", "tests/test_packaging.py"}
    assert "ddsm_zoo/recipes/finetune.toml" in names
    assert not any(name.startswith((".venv", "demo/", "runs/", "dist/")) for name in names)


def test_the_version_is_the_same_everywhere(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    assert HeaderParser().parsestr(archive.read(metadata).decode())["Version"] == ddsm_zoo.__version__
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert ddsm_zoo.__version__ == next(heading for heading in headings if heading != "Unreleased")


class Targets(HTMLParser):
    """What links and pictures of a page lead to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("href", "src") and value]


def test_the_page_of_the_package_links_to_its_repository(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = HeaderParser().parsestr(archive.read(name).decode())
    setting = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    repository = setting["tool"]["hatch"]["metadata"]["hooks"]["custom"]["repository"]
    urls = dict(entry.split(", ") for entry in metadata.get_all("Project-URL", []))
    assert urls.keys() >= {"Homepage", "Documentation", "Changelog", "Issues"}
    assert all(url.startswith(repository) for url in urls.values())

    there, here = (
        Targets(markdown.markdown(text)).found
        for text in (metadata.get_payload(), (ROOT / "README.md").read_text(encoding="utf-8"))
    )
    assert len(there) == len(here) > 10
    for target, relative in zip(there, here, strict=True):
        if "://" in relative:
            assert target == relative
            continue
        kind = "raw" if relative.endswith(".png") else "blob"
        assert target == f"{repository}/{kind}/main/{relative}"
        assert (ROOT / relative.partition("#")[0]).exists()


def test_the_installed_package_labels_a_street_without_the_checkout(installed: Path, tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}
    location = run(sys.executable, "-c", "import ddsm_zoo; print(ddsm_zoo.__file__)", cwd=tmp_path, **environment)
    assert Path(location.strip()) == installed / "ddsm_zoo" / "__init__.py"

    image, _ = render_scene(0)
    Image.fromarray(image).save(tmp_path / "street.png")
    command = installed / "bin" / "ddsm-zoo"
    run(sys.executable, str(command), "predict", "street.png", "-o", "out", cwd=tmp_path, **environment)
    pictures = [np.asarray(Image.open(path)) for path in (tmp_path / "out").rglob("*.png")]
    assert pictures, "predict wrote no picture"
    assert any(picture.shape == image.shape[:2] for picture in pictures)


def test_the_installed_package_trains_by_a_recipe_without_the_checkout(installed: Path, tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}
    command = (sys.executable, str(installed / "bin" / "ddsm-zoo"))
    listed = json.loads(run(*command, "recipes", "--json", "-", cwd=tmp_path, **environment))
    assert [row["name"] for row in listed] == sorted(path.stem for path in (ROOT / "ddsm_zoo/recipes").iterdir())

    options = ("--recipe", "finetune", "--data", "scenes:2", "--out", "runs/mine", "--pretrained")
    short = ("--epochs", "1", "--workers", "0", "--set", "batch_size=1", "--set", "crop_size=[64, 96]")
    assert "local-dir:runs/mine/best" in run(*command, "train", *options, *short, cwd=tmp_path, **environment)
    assert json.loads((tmp_path / "runs/mine/best/config.json").read_text())["pretrained_cfg"]["recipe"] == "finetune"


def test_every_model_has_its_row_in_the_table() -> None:
    table = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    missing = [name for name in ddsm_zoo.list_models() if f"`{name}`" not in table]
    assert not missing, f"run `make table`: docs/models.md lacks {', '.join(missing)}"


def test_the_badges_say_what_the_metadata_say() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    badges = dict(re.findall(r"badge/(\w+)-(\S+)-\w+\)", readme))
    assert unquote(badges["python"]) == project["requires-python"].replace(">=", "\u2265")
    assert badges["license"].replace("--", "-") == project["license"]
