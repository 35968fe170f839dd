"""Commands ``save``, ``push`` and ``import``: save and publish weights, and import those of other libraries."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Annotated, Any

import typer

from ddsm_zoo.cli.app import JsonOption, app
from ddsm_zoo.cli.console import check_folder, check_output, print_lines, report
from ddsm_zoo.hub.model_files import CONFIG_FILE, WEIGHTS_FILE
from ddsm_zoo.utils.files import OutputError

HalfOption = Annotated[bool, typer.Option("--half", help="Store kernels in 16 bits, which halves the file.")]


def check_new_model(folder: Path) -> None:
    """Raise OutputError if nothing can be written in ``folder``, or if it holds a model, which must not be replaced."""
    check_folder(folder)
    if any((folder / name).exists() for name in (CONFIG_FILE, WEIGHTS_FILE)):
        raise OutputError(errno.EEXIST, "it holds a model already, choose another folder", str(folder))


@app.command()
def save(
    model: Annotated[str, typer.Argument(help="Model with weights: a name, hf-hub:ORG/REPO or local-dir:PATH.")],
    folder: Annotated[Path, typer.Argument(help="Output folder.", metavar="DIR")],
    half: HalfOption = False,
) -> None:
    """Save a pretrained model to a folder with config.json, model.safetensors and a card. local-dir:DIR loads it.

    Example:

    ddsm-zoo save uper_ddsm_lite0_camvid models/camvid
    """
    check_new_model(folder)
    from ddsm_zoo.zoo.factory import create_trained
    from ddsm_zoo.zoo.publishing import save_pretrained

    save_pretrained(create_trained(model), folder, half=half)
    print_lines([f"local-dir:{folder}"])


@app.command()
def push(
    model: Annotated[str, typer.Argument(help="Model with weights: a name, hf-hub:ORG/REPO or local-dir:PATH.")],
    repository: Annotated[str, typer.Argument(help="Repository on the Hub.", metavar="ORG/NAME")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to. Default: main.", metavar="BRANCH")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of pushing.")] = False,
    half: HalfOption = False,
) -> None:
    """Publish a model on the Hugging Face Hub: weights, config.json and model card, in one commit.

    Log in first with `hf auth login`, or set HF_TOKEN.

    Example:

    ddsm-zoo push local-dir:runs/mine/best ORG/my-model --private
    """
    from ddsm_zoo.hub.upload import check_push
    from ddsm_zoo.zoo.factory import create_trained
    from ddsm_zoo.zoo.publishing import push_to_hub

    check_push(repository, revision=revision, create_pr=create_pr)  # loading the model may take minutes
    uri = push_to_hub(
        create_trained(model), repository, private=private or None, revision=revision, create_pr=create_pr, half=half
    )
    print_lines([uri])


@app.command("import")
def import_weights(
    checkpoint: Annotated[
        Path, typer.Argument(help="Checkpoint: a .safetensors, .pth or .ckpt file with a state dict.")
    ],
    folder: Annotated[Path, typer.Argument(help="Output folder.", metavar="DIR")],
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help="Name of a model or decoder, such as uper_ddsm_r50 or uper.", metavar="NAME"
        ),
    ],
    classes: Annotated[int, typer.Option(help="Number of classes in the checkpoint.", min=1)],
    backbone: Annotated[
        str | None, typer.Option(help="timm name of the backbone. Default: the model's.", metavar="NAME")
    ] = None,
    width: Annotated[int | None, typer.Option(help="Width of the decoder. Default: the model's.")] = None,
    separable: Annotated[bool, typer.Option("--separable", help="The decoder uses separable convolutions.")] = False,
    json: JsonOption = None,
) -> None:
    """Convert a checkpoint into a saved model.

    Reads state dicts of ddsm-zoo, of smp (UPerNet, DeepLabV3+), of mmsegmentation (UPerNet) and of ResNets, also from
    Lightning, DataParallel or torch.compile. Layers without a counterpart are randomly initialized and reported: train
    before you predict. No code in a .pth or .ckpt file is executed.

    Examples:

    ddsm-zoo import upernet.pth models/mine --model uper --backbone resnet50c --width 512 --classes 150

    ddsm-zoo import last.ckpt models/mine --model uper_ddsm_r50 --classes 5
    """
    check_new_model(folder)
    check_output(json)
    from ddsm_zoo.zoo.convert import convert_weights
    from ddsm_zoo.zoo.factory import create_model
    from ddsm_zoo.zoo.publishing import save_pretrained

    options: dict[str, Any] = {} if width is None else {"width": width}
    if backbone is not None:
        options["backbone"] = backbone
    if separable:
        options["separable"] = True
    target = create_model(model, num_classes=classes, **options)
    done = convert_weights(target, checkpoint)
    save_pretrained(target, folder)
    report(done.to_dict(), json)
    if json != "-":
        print_lines([str(done), f"local-dir:{folder}"])
