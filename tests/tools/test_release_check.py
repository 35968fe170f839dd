"""The checks before a release: what they refuse, and that a process without network is one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools import release_check
from tools.build_metadata import absolute
from tools.release_check import (
    GUARD,
    CheckFailed,
    Release,
    check_contents,
    check_links,
    check_version,
    lowest_versions,
    main,
)

NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,8}[A-Za-z0-9]", fullmatch=True)
VERSIONS = st.from_regex(r"[0-9]{1,2}(\.[0-9]{1,3}){0,2}", fullmatch=True)


@given(NAMES, VERSIONS, st.sampled_from(["", "[extra]", "[a,b]"]), st.sampled_from(["", ",<9"]))
def test_a_bound_becomes_a_pin(name: str, version: str, extra: str, upper: str) -> None:
    project = {"name": "none-of-those-names", "dependencies": [f"{name}{extra}>={version}{upper}"]}
    assert lowest_versions(project) == [f"{name}=={version}"]


def test_pins_are_those_of_users() -> None:
    project = {
        "name": "ours",
        "dependencies": ["torch>=2.6", "tomli>=2.0; python_version < '3.11'"],
        "optional-dependencies": {
            "train": ["matplotlib>=3.8", "psutil>=5.9"],
            "all": ["ours[train]", "matplotlib>=3.8"],
            "dev": ["ours[train]", "pytest>=8"],
        },
    }
    pins = ["matplotlib==3.8", "psutil==5.9", "tomli==2.0; python_version < '3.11'", "torch==2.6"]
    assert lowest_versions(project) == pins


@pytest.mark.parametrize("requirement", ["torch", "torch==2.6", "torch<3", "torch @ https://a.example/t.whl"])
def test_a_dependency_without_a_bound_is_refused(requirement: str) -> None:
    with pytest.raises(CheckFailed, match="expected NAME>=VERSION"):
        lowest_versions({"name": "ours", "dependencies": [requirement]})


def test_a_version_that_the_changelog_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match=r"says 99\.9, expected \d+\.\d+\.\d+ as"):
        check_version(Release(tmp_path, "99.9"))


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ("tests/zoo/test_registry.py", "holds tests/zoo/test_registry.py, expected the package alone"),
        ("ddsm_zoo/zoo.pyc", "holds ddsm_zoo/zoo.pyc, which running"),
        ("ddsm_zoo/py.typed", "lacks ddsm_zoo-1.0.dist-info/licenses/LICENSE"),
    ],
)
def test_a_wheel_with_more_or_less_is_refused(tmp_path: Path, extra: str, reason: str) -> None:
    release = Release(tmp_path, "1.0")
    release.wheel.parent.mkdir()
    with zipfile.ZipFile(release.wheel, "w") as archive:
        archive.writestr("ddsm_zoo/__init__.py", "")
        archive.writestr(extra, "")
    with pytest.raises(CheckFailed, match=reason):
        check_contents(release)


REPOSITORY = "https://github.com/ddsm-zoo/ddsm-zoo"


@pytest.mark.parametrize(
    ("url", "text", "reason"),
    [
        (REPOSITORY, f"[a]({REPOSITORY}/x) [b](#here) <a href='https://b.example'>", None),
        (REPOSITORY, f"[a]({REPOSITORY}/x) [b](docs/b.md)", "relative links, .*: docs/b.md"),
        (REPOSITORY, f"[a]({REPOSITORY}/x) ![b]( docs/b.png)", "relative links, .*: docs/b.png"),
        (REPOSITORY, f"[a]({REPOSITORY}/x)\n\n[b]: docs/b.md", "relative links, .*: docs/b.md"),
        (REPOSITORY, f"[a]({REPOSITORY}/x) <img src='docs/b.png'>", "relative links, .*: docs/b.png"),
        (REPOSITORY, f"[a]({REPOSITORY}/x) [b](/docs/b.md)", "relative links, .*: /docs/b.md"),
        (REPOSITORY, "no links", "has no link to https://github.com/ddsm-zoo"),
        ("https://b.example", "", "expected https://github.com/ddsm-zoo/ddsm-zoo among them"),
    ],
)
def test_a_page_with_relative_links_is_refused(url: str, text: str, reason: str | None) -> None:
    metadata = HeaderParser().parsestr(f"Project-URL: Homepage, {url}\n\n{text}")
    if reason is None:
        check_links(metadata)
        return
    with pytest.raises(CheckFailed, match=reason):
        check_links(metadata)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a](docs/a.md#part) and ![b](docs/b.png)", "[a](R/blob/main/docs/a.md#part) and ![b](R/raw/main/docs/b.png)"),
        ("[![a](docs/a.png)](docs/a.md)", "[![a](R/raw/main/docs/a.png)](R/blob/main/docs/a.md)"),
        ('<img src="a.png"> <a href="LICENSE">', '<img src="R/raw/main/a.png"> <a href="R/blob/main/LICENSE">'),
        ("[a][1]\n\n[1]: docs/a.md", "[a][1]\n\n[1]: R/blob/main/docs/a.md"),
        *[(kept, kept) for kept in ("[b](https://b.example/x)", "[c](#c)", "[m](mailto:a@b.example)", "![d](data:x)")],
    ],
)
def test_links_of_the_readme_become_absolute(text: str, expected: str) -> None:
    assert absolute(text, "https://r.example") == expected.replace("R/", "https://r.example/")


ASK = {
    "a connection": "import socket; socket.create_connection(('127.0.0.1', {port}))",
    "one whose failure is caught": "import socket\ntry: socket.create_connection(('127.0.0.1', {port}))\nexcept: pass",
    "a name": "import socket; socket.getaddrinfo('localhost', {port})",
    "a datagram": "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('127.0.0.1', {port}))",
}


@pytest.mark.parametrize("how", ASK)
def test_what_asks_the_network_ends(how: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(GUARD)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        program = ASK[how].format(port=server.getsockname()[1])
        command = [sys.executable, "-c", f"{program}\nprint('went on')"]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        with pytest.raises(TimeoutError):
            server.accept()
    assert (done.returncode, done.stdout) == (99, "")
    assert done.stderr.startswith("asked the network: socket.")


def test_the_first_failure_ends_it_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(release: Release) -> str:
        raise CheckFailed("it does not hold")

    done: list[str] = []
    checks = {"one": lambda _: "fine", "two": fail, "three": lambda _: done.append("three") or "unseen"}
    monkeypatch.setattr(release_check, "CHECKS", checks)
    assert main([]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.split()[:3] == ["one", "ok", "fine"]
    assert second.split(maxsplit=1) == ["two", "FAILED: it does not hold"]
    assert not done
