"""Commands ``save``, ``push`` and ``import``: save and publish weights, and import those of other libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ddsm_zoo.cli.app import JsonOption, app
from ddsm_zoo.cli.console import check_folder, check_output, print_lines, report

HalfOption = Annotated[bool, typer.Option("--half", help="Store kernels in 16 bits, for half the size.")]


@app.command()
def save(
    model: Annotated[str, typer.Argument(help="A model with weights: a name, hf-hub:ORG/REPO or local-dir:PATH.")],
    folder: Annotated[Path, typer.Argument(help="Where to write it.", metavar="DIR")],
    half: HalfOption = False,
) -> None:
    """Write a pretrained model as a folder with config.json and model.safetensors, which local-dir:DIR loads again.

    ddsm-zoo save uper_ddsm_lite0_camvid models/camvid
    """
    check_folder(folder)
    from ddsm_zoo.zoo.factory import create_trained, save_pretrained

    save_pretrained(create_trained(model), folder, half=half)
    print_lines([f"local-dir:{folder}"])


@app.command()
def push(
    model: Annotated[str, typer.Argument(help="A model with weights: a name, hf-hub:ORG/REPO or local-dir:PATH.")],
    repository: Annotated[str, typer.Argument(help="Where on the Hub.", metavar="ORG/NAME")],
    private: Annotated[bool, typer.Option("--private", help="Only for you and your organisation.")] = False,
    revision: Annotated[str | None, typer.Option(help="A branch in place of main.", metavar="BRANCH")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request, change nothing.")] = False,
    half: HalfOption = False,
) -> None:
    """Publish a model on the Hugging Face Hub: weights, config.json and model card, in one commit.

    The token is that of `hf auth login`, or in the environment as HF_TOKEN.

    ddsm-zoo push local-dir:runs/mine/best ORG/my-model --private
    """
    from ddsm_zoo.hub.client import check_push
    from ddsm_zoo.zoo.factory import create_trained, push_to_hub

    check_push(repository, revision=revision, create_pr=create_pr)  # loading the model may take minutes
    uri = push_to_hub(
        create_trained(model), repository, private=private or None, revision=revision, create_pr=create_pr, half=half
    )
    print_lines([uri])


@app.command("import")
def import_weights(
    checkpoint: Annotated[Path, typer.Argument(help="A .safetensors, .pth or .ckpt file with a state dict.")],
    folder: Annotated[Path, typer.Argument(help="Where to write the model.", metavar="DIR")],
    model: Annotated[str, typer.Option("--model", "-m", help="A model's name, or a decoder's.", metavar="NAME")],
    classes: Annotated[int, typer.Option(help="How many classes the checkpoint has.", min=1)],
    backbone: Annotated[
        str | None, typer.Option(help="The timm name of its backbone, unless the model's.", metavar="NAME")
    ] = None,
    width: Annotated[int | None, typer.Option(help="The decoder's width, unless it is the model's.")] = None,
    separable: Annotated[bool, typer.Option("--separable", help="The decoder has separable convolutions.")] = False,
    json: JsonOption = None,
) -> None:
    """Turn a state dict into a saved model: our own, a UPerNet or DeepLabV3+ of smp or mmsegmentation, or a ResNet.

    Layers that have no counterpart there are freshly initialised, and named: train before you predict. A checkpoint of
    Lightning, DataParallel or torch.compile may be around it. Nothing in a .pth or .ckpt file is executed.

    ddsm-zoo import upernet.pth models/mine --model uper --backbone resnet50c --width 512 --classes 150

    ddsm-zoo import last.ckpt models/mine --model uper_ddsm_r50 --classes 5
    """
    check_folder(folder)
    check_output(json)
    from ddsm_zoo.zoo.convert import convert_weights
    from ddsm_zoo.zoo.factory import create_model, save_pretrained

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
