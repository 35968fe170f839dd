"""``demo``: one line for what keeps the page from being shown; tests/browser looks at the page itself."""

from __future__ import annotations

import sys

import pytest

from ddsm_zoo.demo.page import listen
from tests.support.command_line import run_command


def test_without_gradio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = run_command("demo", "--port", "0", fails=1)
    assert "error: the page needs the package gradio: pip install 'ddsm-zoo[demo]'" in result.stderr
    assert "http://" not in result.output


def test_a_port_that_is_taken() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        result = run_command("demo", "--port", str(port), fails=1)
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use; choose others" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "fe80::1%nowhere"], "cannot listen on fe80::1%nowhere:0: "),  # needs no name server to be refused
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1:0: "),  # an address of no machine
        (["--model", "uper_dsm_r50"], "unknown model 'uper_dsm_r50'; did you mean"),
    ],
)
def test_what_cannot_be(options: list[str], message: str) -> None:
    assert message in run_command("demo", "--port", "0", *options, fails=1).stderr


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_a_port_that_is_none(port: str) -> None:
    from typer.testing import CliRunner

    from ddsm_zoo.cli import app

    result = CliRunner().invoke(app, ["demo", "--port", port])
    assert result.exit_code == 2
    assert "--port" in result.stderr
