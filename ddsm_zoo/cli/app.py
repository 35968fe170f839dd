"""Command line application: error handling, version, and options shared by several commands."""

from __future__ import annotations

import importlib
import itertools
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ddsm_zoo.cli.console import LogLines, drop_output, print_any_text, print_error, print_lines, stderr
from ddsm_zoo.errors import ArgumentError, PackageError
from ddsm_zoo.utils.allocator import keep_freed_memory


def refuse_empty(words: Sequence[str], *, arguments: bool) -> None:
    """Raise ArgumentError for an empty value of an option or, with ``arguments``, of an argument.

    As a path it would mean the current folder.
    """
    for before, word in itertools.pairwise(["", *words]):
        joined = re.fullmatch(r"(--[\w-]+)=\s*", word)
        option = joined[1] if joined else before if before.startswith("-") else ""
        if joined or (not word.strip() and (option or arguments)):
            raise ArgumentError(
                f"got an empty value{f' for {option}' if option else ''}, expected a name, path or number; is a "
                "variable of the shell unset?",
                name=option or None,
            )


class OneLineErrors(TyperGroup):
    """End the command with one line on stderr and status 2, whatever goes wrong. DDSM_ZOO_DEBUG=1 shows tracebacks."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command whose help wraps its paragraphs to the terminal and shows no value for flags."""
        command: Any = super().get_command(ctx, cmd_name)  # typer's type of an option has no metavar before 0.20
        if command is not None:
            paragraphs = (command.help or "").split("\n\n")
            command.help = "\n\n".join(paragraph.replace("\n", " ") for paragraph in paragraphs)
            for option in (*command.params, command.get_help_option(ctx)):
                if getattr(option, "is_flag", False):
                    option.metavar = ""
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        assert command is not None  # typer has ended otherwise
        # `predict` names an empty path among others itself
        refuse_empty(rest, arguments=all(parameter.nargs != -1 for parameter in command.params))
        return name, command, rest

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # so that a full disk is an error; at exit, Python would only print a warning
        except KeyboardInterrupt:
            stderr.print("interrupted")
            raise typer.Exit(130) from None
        except (typer.Abort, BrokenPipeError):  # typer ends quietly when `head` has closed the pipe
            raise
        except Exception as error:  # the outermost boundary: one line with type and place of an unexpected error
            # typer's own, of usage for example, have a status
            if hasattr(error, "exit_code") or os.environ.get("DDSM_ZOO_DEBUG", "0") != "0":
                raise
            print_error(error)
            drop_output()
            raise typer.Exit(2) from error
        return result


app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

ModelOption = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="Model: a name from `ddsm-zoo list`, hf-hub:ORG/REPO or local-dir:PATH.", metavar="NAME"
    ),
]
# Data set kinds of the package, listed here because help is written before plugins are loaded and without torch
DATA_KINDS = "camvid:ROOT, cityscapes:ROOT, folder:ROOT, scenes:N or your own kind (--plugin)"
DataOption = Annotated[str, typer.Option("--data", "-d", help=f"Data set: {DATA_KINDS}.", metavar="SPEC")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1. Default: a GPU if there is one.")]
ThresholdOption = Annotated[
    float | None,
    typer.Option(
        help="Single-class models: probability above which a pixel is the class. Default: stored with the weights.",
        metavar="P",
    ),
]
PrecisionOption = Annotated[
    str,
    typer.Option(
        help="fp32; bf16, which needs half the memory; or auto: bf16 if it is faster and agrees.", metavar="NAME"
    ),
]
JsonOption = Annotated[
    str | None, typer.Option("--json", help="Write the results as JSON to FILE; - is standard output.", metavar="FILE")
]


def main() -> None:
    """Run the shell command."""
    keep_freed_memory()
    app()


def load_plugin(name: str) -> None:
    """Import a user's module, also from the current folder.

    Raises LookupError for a missing module, and ValueError for a path and for a ValueError of the module itself.
    """
    if not name or name.startswith(".") or name.endswith(".py") or {"/", "\\"} & set(name):
        raise ArgumentError(
            f"--plugin is {name!r}, expected the name of a module, such as mine for the file mine.py", kind="plugin"
        )
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # permanently, because data loading processes import it too
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise PackageError(
            f"--plugin {name}: no such module, expected the name of one in {Path.cwd()} or of an installed package",
            kind="plugin",
            name=name,
        ) from error
    except ValueError as error:
        raise ArgumentError(f"--plugin {name}: {error}", kind="plugin", name=name) from error


def print_version(wanted: bool) -> None:
    if wanted:
        from ddsm_zoo.version import __version__

        print_lines([__version__])
        raise typer.Exit


@app.callback()
def configure(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=print_version, is_eager=True)
    ] = False,
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            help="Import your module first, to register your models or data sets. May be repeated.", metavar="MODULE"
        ),
    ] = None,
) -> None:
    """Semantic segmentation with the Dynamic Dual Sampling Module (DDSM).

    Segment an image with the bundled model:  ddsm-zoo predict street.jpg
    """
    print_any_text()
    for module in plugin or ():
        load_plugin(module)
    logger = logging.getLogger("ddsm_zoo")
    logger.handlers = [LogLines()]
    logger.setLevel(logging.INFO)
    # It warns of the layers of the ImageNet classifier, which no backbone has
    logging.getLogger("timm.models._builder").setLevel(logging.ERROR)
