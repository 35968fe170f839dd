"""What must hold before a release: ``make release-check``, and with the oldest dependencies ``make test-lowest``.

    python tools/release_check.py [--lowest]

Builds sdist and wheel of this checkout, looks at what they say and hold, installs the wheel in a new environment and
uses it there. Prints a line for each check; the first that fails ends it with the reason and status 1. All of it
happens in a temporary folder. pip fetches the dependencies as it is configured to; what is installed then runs in
processes that end at their first attempt to reach a network.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

import ddsm_zoo
from ddsm_zoo.training.recipe import list_recipes
from ddsm_zoo.zoo import registry

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
BUNDLED = "uper_ddsm_lite0_camvid"
# Extras for work on the package itself, and the one that cannot be beside them
NOT_LOWEST = ("browser", "demo", "dev", "docs", "test")
# The tests that run with the oldest dependencies: each module of the package that leans on one
QUICK = (
    *("layers", "models", "ops", "weights", "zoo", "test_hubconf.py", "cli/test_app.py"),
    *(
        "data/importing",
        "data/test_transforms.py",
        "inference/test_predictor.py",
        "inference/test_video.py",
        "utils/test_visualize.py",
    ),
    *("training/test_loop.py", "training/test_resume.py", "training/test_run.py"),
    *("explain/test_explain.py", "export/test_program.py"),
)
# As `sitecustomize` it is imported before anything else.
GUARD = """
import os, sys

def refuse(event, arguments):
    asks = event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg")
    # A path is a socket of this machine.
    if asks or (event == "socket.connect" and isinstance(arguments[1], tuple)):
        os.write(2, f"asked the network: {event} {arguments}\\n".encode())
        os._exit(99)  # which no library can catch

sys.addaudithook(refuse)
"""
CREATE = f"""
import torch, ddsm_zoo
model = ddsm_zoo.create_model("{BUNDLED}", pretrained=True).eval()
with torch.inference_mode():
    logits = model(torch.rand(1, 3, 65, 97))
assert logits.shape == (1, 11, 65, 97) and logits.isfinite().all(), logits.shape
"""
HUB = f"""
import sys, torch
model = torch.hub.load(sys.argv[1], "{BUNDLED}", source="local", pretrained=True)
assert model.num_classes == 11, model.num_classes
"""
PREDICTED = """
import sys, numpy, PIL.Image
truth, ids = (numpy.asarray(PIL.Image.open(path)) for path in sys.argv[1:])
right = (truth == ids)[truth != 11].mean()
assert right > 0.8, f"{right:.3f} of the pixels of the sample are right"
print(f"{100 * right:.1f} % of the pixels are right")
"""
SCORED = """
import json, sys
print(f"mIoU {json.load(open(sys.argv[1]))['miou']:.3f}")
"""


class CheckFailed(Exception):
    """Something that must hold before a release does not."""


@dataclass(frozen=True)
class Release:
    """What is checked, and the folder in which that happens."""

    folder: Path
    version: str = ddsm_zoo.__version__

    @property
    def wheel(self) -> Path:
        return self.folder / "dist" / f"ddsm_zoo-{self.version}-py3-none-any.whl"

    @property
    def sdist(self) -> Path:
        return self.folder / "dist" / f"ddsm_zoo-{self.version}.tar.gz"

    @property
    def sources(self) -> Path:
        """The unpacked sdist."""
        return self.folder / f"ddsm_zoo-{self.version}"

    @property
    def programs(self) -> Path:
        """Where the new environment has its commands."""
        return self.folder / "environment" / ("Scripts" if os.name == "nt" else "bin")

    def offline(self, program: str, *arguments: str | Path) -> str:
        """Run what is installed with no network, no caches and nothing of the checkout; what it prints."""
        (self.folder / "guard").mkdir(exist_ok=True)
        (self.folder / "guard" / "sitecustomize.py").write_text(GUARD, encoding="utf-8")
        caches = {name: str(self.folder / "caches") for name in ("HF_HOME", "TORCH_HOME", "XDG_CACHE_HOME")}
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("DDSM_", "HF_", "PYTHON"))
        }
        environment |= {**caches, "PYTHONPATH": str(self.folder / "guard")}
        return run(self.programs / program, *arguments, cwd=self.folder, environment=environment)


def run(*command: str | Path, cwd: Path, environment: Mapping[str, str] | None = None) -> str:
    """Standard output of a command. Raises CheckFailed with all that it said when it fails."""
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)  # noqa: S603 - commands of this file
    if done.returncode:
        raise CheckFailed(
            f"{' '.join(map(str, command))} ended with status {done.returncode}\n{done.stdout}{done.stderr}"
        )
    return done.stdout


def require(holds: bool, reason: str) -> None:
    if not holds:
        raise CheckFailed(reason)


def check_version(release: Release) -> str:
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    newest = next((heading for heading in headings if heading != "Unreleased"), "none")
    require(
        newest == release.version,
        f"ddsm_zoo/version.py says {release.version}, expected {newest} as CHANGELOG.md's newest section",
    )
    return f"{release.version}, as CHANGELOG.md says"


def build(release: Release) -> str:
    """The sdist, and from it the wheel, so that the sdist is known to be whole."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", release.wheel.parent, ROOT, cwd=release.folder)
    with tarfile.open(release.sdist) as archive:
        archive.extractall(release.folder, filter="data")
    return f"wheel {release.wheel.stat().st_size / 1e6:.1f} MB, sdist {release.sdist.stat().st_size / 1e6:.1f} MB"


def check_reproducible(release: Release) -> str:
    again = release.folder / "again"
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", again, ROOT, cwd=release.folder)
    first, second = (hashlib.sha256(path.read_bytes()).hexdigest() for path in (release.wheel, *again.glob("*.whl")))
    require(first == second, "the wheel that the checkout gives differs from the one that the sdist gives")
    return f"checkout and sdist give the same wheel, sha256 {first[:16]}"


def check_metadata(release: Release) -> str:
    run(sys.executable, "-m", "twine", "check", "--strict", release.wheel, release.sdist, cwd=release.folder)
    with zipfile.ZipFile(release.wheel) as archive:
        text = archive.read(f"ddsm_zoo-{release.version}.dist-info/METADATA").decode("utf-8")
    metadata = HeaderParser().parsestr(text)
    project = pyproject()["project"]
    expected = {
        "Name": project["name"],
        "Version": release.version,
        "Summary": project["description"],
        "License-Expression": project["license"],
        "License-File": project["license-files"][0],
        "Requires-Python": project["requires-python"],
        "Description-Content-Type": "text/markdown",
    }
    for field, value in expected.items():
        require(metadata[field] == value, f"{field} is {metadata[field]!r}, expected {value!r}")
    check_pythons(metadata)
    check_links(metadata)
    return f"twine has no complaint, {len(expected)} fields and {len(metadata.get_all('Classifier', []))} classifiers"


def check_pythons(metadata: Message) -> None:
    """The classifiers name the oldest Python that is allowed and none that is older."""
    oldest = tuple(map(int, re.findall(r"\d+", metadata["Requires-Python"])))
    named = re.findall(r"Python :: (\d+)\.(\d+)", " ".join(metadata.get_all("Classifier", [])))
    first = min(((int(major), int(minor)) for major, minor in named), default=None)
    require(first == oldest, f"the oldest Python in the classifiers is {first}, expected {oldest}")


def check_links(metadata: Message) -> None:
    """Project URLs are those of the repository, and no link or picture of the description is relative."""
    repository = pyproject()["tool"]["hatch"]["metadata"]["hooks"]["custom"]["repository"]
    urls = [entry.partition(", ")[2] for entry in metadata.get_all("Project-URL", [])]
    require(repository in urls, f"the project URLs are {urls}, expected {repository} among them")
    for url in urls:
        require(url.startswith(repository), f"the project URL {url} does not begin with {repository}")
    text = str(metadata.get_payload())
    links = r"""\]\(\s*([^)\s]+)|\b(?:src|srcset|href)=["']([^"']+)|^\[[^\]]+\]:\s*(\S+)"""
    found = [target for groups in re.findall(links, text, re.MULTILINE) for target in groups if target]
    require(any(target.startswith(repository) for target in found), f"the description has no link to {repository}")
    relative = [target for target in found if not re.match(r"[a-zA-Z][\w+.-]*:|#", target)]
    require(not relative, f"the description has relative links, which lead nowhere on its page: {', '.join(relative)}")


def check_contents(release: Release) -> str:
    with zipfile.ZipFile(release.wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    about = f"ddsm_zoo-{release.version}.dist-info/"
    for name in files:
        require(name.startswith(("ddsm_zoo/", about)), f"the wheel holds {name}, expected the package alone")
        require(not name.endswith((".pyc", ".pyo")), f"the wheel holds {name}, which running the package left behind")
    recipes = [f"ddsm_zoo/recipes/{name}.toml" for name in list_recipes()]
    for name in ("ddsm_zoo/py.typed", f"{about}licenses/LICENSE", f"{about}entry_points.txt", *recipes):
        require(name in files, f"the wheel lacks {name}")
    weights = registry.find(BUNDLED).weights
    assert weights is not None
    found = hashlib.sha256(files.get(f"ddsm_zoo/weights/{BUNDLED}.safetensors", b"")).hexdigest()
    require(found == weights.sha256, f"the bundled weights have the hash {found}, expected {weights.sha256}")

    listed = pyproject()["tool"]["hatch"]["build"]["targets"]["sdist"]["only-include"]
    expected = {*listed, "LICENSE", "PKG-INFO", "README.md", "pyproject.toml", ".gitignore"}
    tops = {path.name for path in release.sources.iterdir()}
    require(tops == expected, f"the sdist differs from what pyproject.toml lists in {sorted(tops ^ expected)}")
    return (
        f"{len(files)} files in the wheel, the weights are those of the model table; {len(tops)} entries in the sdist"
    )


def install(release: Release) -> str:
    return new_environment(release, release.wheel)


def install_lowest(release: Release) -> str:
    """The oldest version of each dependency that the package names, with the newest tools to test it.

    By pip, not by uv's ``--resolution lowest-direct``: uv does not read how pip is configured. On a machine whose pip
    has a local index, or wheels of PyTorch for CPUs, it would ask PyPI and fetch gigabytes of CUDA libraries.
    """
    project = pyproject()["project"]
    lowest = lowest_versions(project)
    constraints = release.folder / "lowest.txt"
    constraints.write_text("\n".join(lowest) + "\n", encoding="utf-8")
    extras = ",".join([*users_extras(project), "test"])
    made = new_environment(release, f"{release.wheel}[{extras}]", "--constraint", constraints)
    return f"{made}: {', '.join(lowest)}"


def new_environment(release: Release, *requirements: str | Path) -> str:
    venv.create(release.programs.parent, symlinks=os.name != "nt", with_pip=True)
    return add(release, *requirements)


def add(release: Release, *requirements: str | Path) -> str:
    """Install into the new environment."""
    pip = (release.programs / "python", "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", "--quiet", *requirements, cwd=release.folder)
    run(*pip, "check", cwd=release.folder)
    return (
        f"{len(run(*pip, 'list', '--format=freeze', cwd=release.folder).splitlines())} packages, pip check is content"
    )


def lowest_versions(project: Mapping[str, Any]) -> list[str]:
    """A pin for each dependency of users, at the lowest version that pyproject.toml's table ``project`` allows."""
    pins = set()
    for requirement in (*project["dependencies"], *itertools.chain(*users_extras(project).values())):
        if requirement.startswith(f"{project['name']}["):  # other extras, which are in the list themselves
            continue
        parts = re.fullmatch(r"([\w.-]+)(?:\[[^]]*\])?>=([\w.]+)[^;]*(;.*)?", requirement)
        if parts is None:
            raise CheckFailed(f"pyproject.toml has the dependency {requirement!r}, expected NAME>=VERSION")
        name, version, marker = parts.groups(default="")
        pins.add(f"{name}=={version}{marker}")
    return sorted(pins)


def users_extras(project: Mapping[str, Any]) -> dict[str, list[str]]:
    extras = project.get("optional-dependencies", {})
    return {name: extras[name] for name in extras if name not in NOT_LOWEST}


def add_training(release: Release) -> str:
    return add(release, f"{release.wheel}[train]")


def check_guard(release: Release) -> str:
    """The checks that follow mean nothing where a connection would go through."""
    try:
        release.offline("python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9')")
    except CheckFailed as failure:
        require("asked the network" in str(failure), str(failure))
        return "a process that asks for it ends"
    raise CheckFailed("a process that asks the network goes on, expected it to end")


def check_list(release: Release) -> str:
    names = release.offline("ddsm-zoo", "list").split()
    require(names == ddsm_zoo.list_models(), "ddsm-zoo list names other models than the checkout has")
    release.offline("ddsm-zoo", "info", BUNDLED)
    return f"{len(names)} models, info on {BUNDLED}"


def check_recipes(release: Release) -> str:
    names = [row["name"] for row in json.loads(release.offline("ddsm-zoo", "recipes", "--json", "-"))]
    require(names == list_recipes(), "ddsm-zoo recipes names other recipes than the checkout has")
    return f"{len(names)} recipes"


def check_train(release: Release) -> str:
    """The README's command for fine-tuning, shortened."""
    short = ("--epochs", "1", "--workers", "0", "--set", "batch_size=1", "--set", "crop_size=[64, 96]")
    options = ("--recipe", "finetune", "--data", "scenes:2", "--out", "runs/mine", "--pretrained")
    return release.offline("ddsm-zoo", "train", *options, *short).splitlines()[-1]


def check_predict(release: Release) -> str:
    (package,) = release.programs.parent.rglob("site-packages/ddsm_zoo")
    sample = package / "data" / "sample"
    release.offline("ddsm-zoo", "predict", sample / "street.png", "-o", "predictions")
    written = sorted(path.name for path in (release.folder / "predictions").iterdir())
    expected = [f"street_{kind}.png" for kind in ("color", "ids", "overlay")]
    require(written == expected, f"predict wrote {written}, expected {expected}")
    ids = release.folder / "predictions" / "street_ids.png"
    return release.offline("python", "-c", PREDICTED, sample / "street_mask.png", ids).strip()


def check_create(release: Release) -> str:
    release.offline("python", "-c", CREATE)
    return "logits of the image's size"


def check_hub(release: Release) -> str:
    release.offline("python", "-c", HUB, release.sources)
    return "torch.hub loads the unpacked sdist"


def check_evaluate(release: Release) -> str:
    options = ("--model", BUNDLED, "--data", "scenes:1", "--json", "scores.json")
    release.offline("ddsm-zoo", "evaluate", *options)
    return release.offline("python", "-c", SCORED, "scores.json").strip()


def run_tests(release: Release) -> str:
    """On the sources of the sdist, whose package is the wheel's.

    What old packages say of the newer ones beside them, which nobody has named, is no error.
    """
    paths = [release.sources / "tests" / name for name in QUICK]
    options = ("-q", "-n", "logical", "-o", "filterwarnings=", "-p", "no:cacheprovider")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    python = release.programs / "python"
    said = run(python, "-m", "pytest", *options, *paths, cwd=release.sources, environment=environment)
    return said.strip().splitlines()[-1].strip("= ")


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


Checks = Mapping[str, Callable[[Release], str]]
SMOKE: Checks = {
    "no network": check_guard,
    "list, info": check_list,
    "recipes": check_recipes,
    "predict": check_predict,
    "create_model": check_create,
    "torch.hub": check_hub,
    "evaluate": check_evaluate,
}
CHECKS: Checks = {
    "version": check_version,
    "build": build,
    "same wheel": check_reproducible,
    "metadata": check_metadata,
    "contents": check_contents,
    "install": install,
    **SMOKE,
    "train extra": add_training,
    "train": check_train,
}
LOWEST: Checks = {"build": build, "install": install_lowest, **SMOKE, "train": check_train, "tests": run_tests}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks in order; the exit status."""
    parser = argparse.ArgumentParser(description="Check a release before it is made.")
    parser.add_argument("--lowest", action="store_true", help="with the oldest dependencies, and run the tests on them")
    chosen = LOWEST if parser.parse_args(arguments).lowest else CHECKS
    with tempfile.TemporaryDirectory(prefix="ddsm-zoo-release-") as folder:
        release = Release(Path(folder))
        for title, check in chosen.items():
            print(f"{title:<14}", end="", flush=True)
            began = time.perf_counter()
            try:
                said = check(release)
            except CheckFailed as failure:
                print(f"FAILED: {failure}")
                return 1
            print(f"ok  {said} ({time.perf_counter() - began:.0f} s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
