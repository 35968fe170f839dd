"""Errors that a user can cause: one line of text for people, and its facts as attributes for programs."""

from __future__ import annotations

import os
from typing import Any, TypeVar

ErrorT = TypeVar("ErrorT", bound="UserError")

# Kinds of errors by section of docs/troubleshooting.md, each with its meaning and what to do, in Markdown
SECTIONS: dict[str, dict[str, str]] = {
    "Names and weights": {
        "unknown-model": "No model has this name. `ddsm-zoo list` prints all names; [Models](models.md) explains how "
        "they are built. A folder is `local-dir:FOLDER`, a repository `hf-hub:ORG/NAME` ([Weights](weights.md)).",
        "no-backbone": "The name is a decoder with a fusion, such as `uper_ddsm`. Add a backbone to the name, or "
        "pass `backbone=`.",
        "no-task-weights": "The name has no data set, so nobody trained it. Train it first, or use a name that ends "
        "in a data set.",
        "weights-not-published": "The address exists, the weights do not. Train them with the recipe that the line "
        "names. The reason in brackets is the Hub's answer; if it is about the network, see the next section.",
        "unknown-option": "`create_model` has no such argument. Overrides are the fields of `ModelConfig` and "
        "`DDSMConfig` ([Reference](reference.md)).",
        "address": "The address has the wrong form. Use `hf-hub:ORG/NAME[@REVISION]`, `local-dir:FOLDER`, or "
        "`https://HOST/FILE` with a sha256 ([Weights](weights.md)).",
        "backbone": "timm cannot build this backbone or has no weights for it. `timm.list_models()` prints its names.",
        "backbone-levels": "The backbone lacks four feature levels at strides 4, 8, 16 and 32, or takes one image "
        "size only. Plain transformers have one level. Use a ResNet, ConvNeXt, EfficientNet or Swin.",
        "weights-mismatch": "The weights are from another architecture or number of classes. The line counts the "
        "tensors that are missing, unexpected or of another shape. For other libraries see "
        "[Migrating](migrating.md).",
        "classes-differ": "Model and data need the same classes in the same order. Fine-tune the model on your "
        "classes, or order `labels.json` as the model does (`ddsm-zoo info MODEL --json -`).",
        "damaged-weights": "The file is cut short, changed, or no safetensors file. Download or save it again.",
        "unsafe-file": "A pickle can run code, so it is not opened. Convert its state dict with `ddsm-zoo import`.",
        "model-too-large": "A config without weights describes a huge model. Load it together with its weights.",
        "checkpoint": "The weights cannot be used; the line says why.",
        "fused-model": "`fuse()` folds batch norms for good. Save or train the model before it. `Predictor` fuses "
        "only models that it loads itself.",
        "bad-name": "Names that you register have lower-case letters, digits and underscores, and must be free.",
        "unregistered": "Import the module that registers the name first: `ddsm-zoo --plugin MODULE COMMAND` "
        "([Extending](extending.md)).",
        "plugin": "`--plugin` takes the name of a module in the current folder or of an installed package, without "
        "`.py`.",
    },
    "Downloads": {
        "hub-offline": "Offline mode is on and the cache lacks the file. Download it once with a network, or run "
        "`ddsm-zoo save NAME DIR` there, copy `DIR` and use `local-dir:DIR`.",
        "hub-missing": "The repository or file does not exist, or the repository is private: the Hub answers both "
        "alike. Check the name, or run `hf auth login`.",
        "hub-revision": "The repository has no such branch, tag or commit. Check the part after the `@`.",
        "hub-unreachable": "No connection to the Hub. Check the network, the proxy and `HF_ENDPOINT`.",
        "hub-access": "The Hub wants a valid token with access. Run `hf auth login`, check `HF_TOKEN`, and accept "
        "the terms of gated repositories on the Hub.",
        "hub-hash": "The downloaded file differs from the published one. Do not use it. Try again; if it stays, tell "
        "the owner of the server.",
        "hub-cache": "The cache cannot be read or written. Free some space, or choose another folder with "
        "`cache_dir` or `HF_HOME`.",
        "hub-exists": "The repository exists with another visibility. Nothing was published "
        "([Publishing](publishing.md#when-something-fails)).",
        "hub": "The server failed or answered something unexpected. Try again later, and check `HF_ENDPOINT`.",
        "download": "An image cannot be downloaded. Open the URL in a browser.",
    },
    "Files, images and videos": {
        "missing-file": "The file does not exist. Check the path and the current folder.",
        "no-images": "The folder or pattern has no image in a format that is read.",
        "list-file": "A text file with one path a line cannot be read or is empty.",
        "image-format": "The file is empty, a folder, or no image that is read. The content counts, not the suffix.",
        "damaged-image": "The file is cut short, damaged, or may not be read. Replace it.",
        "image-too-large": "The image has more pixels than Pillow decodes by default. Use `--tile auto`, and with it "
        "a larger `--memory` ([Large images](large-images.md)).",
        "image-bits": "A pixel value does not fit the stated bits. Correct `--bits`, or `bits` in `labels.json`.",
        "image": "The image cannot be used; the line says why.",
        "array": "An array or tensor has the wrong shape, type or device. The line has both, the one given and the "
        "one expected.",
        "video": "The file cannot be decoded as a video, or loses frames. Play it with `ffplay`, or convert it.",
        "cannot-write": "The output exists, is read-only, or the disk is full. Existing files are kept: choose "
        "another path.",
        "file-suffix": "The suffix chooses the format: `.onnx` or `.pt2` for models, `.toml` for recipes.",
        "syntax": "The file is not valid JSON or TOML. The line has the position.",
    },
    "Devices and memory": {
        "device": 'PyTorch cannot use this device. For `cuda`, check that `python -c "import torch; '
        'print(torch.cuda.is_available())"` prints True.',
        "out-of-memory": "Out of memory. To predict, use `--tile auto` and a lower `--memory` ([Large "
        "images](large-images.md)); to train, a smaller `crop_size` or `batch_size`, or precision bf16.",
        "memory-limit": "`--memory` limits the whole process: 0.9 GiB before the first tile, the image, and the "
        "model, which gets at most half. Raise it.",
        "channels": "Images are read as RGB. Call a model of other `in_chans` with tensors.",
        "nan-scores": "The model gives NaN. Its weights are damaged, or half precision overflows: try `--precision "
        "fp32`.",
        "missing-package": "An extra is not installed. The line has the command.",
    },
    "Options": {
        "argument": "An argument has a value that is not allowed. The line has the allowed ones.",
        "options": "Two options exclude each other, or one needs another.",
        "config": "A field of a config or recipe has a value that is not allowed. The line has the allowed ones.",
        "unknown-field": "A field of a recipe, of `--set` or of a config is misspelled or missing. The line lists "
        "the fields.",
    },
    "Explain, export and demo": {
        "pixel-outside": "`--at` is column and row in the upright image, from its top left corner, starting at 0.",
        "no-sampling": "Only models with `ddsm` or `ddsm_s` sample pixels. `ddsm_c` samples channels alone.",
        "export": "The exporter does not support a layer of the model ([Export](export.md)).",
        "export-differs": "The exported file does not compute what the model does. With `--int8`, pass typical "
        "images: `--images DIR`. For layers of your own see [Export](export.md#if-you-add-layers).",
        "port": "The address is in use or not allowed, often because another page still runs. Choose another `--port`.",
    },
    "Data": {
        "unknown-data": "Data is named `KIND:ROOT`, such as `folder:mydata`. For a kind of your own, use `ddsm-zoo "
        "--plugin MODULE COMMAND`.",
        "missing-folder": "ROOT must be the folder that holds `images/`, `train/` or `leftImg8bit/`.",
        "missing-labels": "A `folder` data set needs `labels.json` with its class names ([Data](data.md)). Exports "
        "of annotation tools are [imported](data.md#from-annotation-tools) first.",
        "label-file": "`labels.json` contradicts itself or has a wrong field; the line says which ([Data](data.md)).",
        "missing-split": "The split has no images, or too few. Use `--split` with one of those that the line lists.",
        "missing-mask": "An image has no mask of its name.",
        "missing-image": "A list names images that do not exist.",
        "same-name": "Two files have the same name, such as `a.png` and `a.jpg`. Remove or rename one.",
        "damaged-mask": "A mask is empty, cut short, or no image. Export it again.",
        "size-mismatch": "A mask or prediction has another size than its image, after the image is turned upright by "
        "its EXIF data.",
        "unknown-id": "A mask holds an id without a class. Add it to `names`, `ids` or `ignore` in `labels.json`.",
        "unknown-color": "A mask holds a color without a class. Add it to `palette` or `ignore_colors` in "
        "`labels.json`.",
        "label-ids": "The masks hold the label ids of Cityscapes. Read the data as `cityscapes:ROOT`, or convert them.",
        "train-ids": "The masks hold the train ids of Cityscapes. Name the files `labelTrainIds`.",
        "binary-mask": "The masks hold only 0 and 255. Define 255 under `ids` in `labels.json`.",
        "rgb-mask": "The masks are RGB images where ids were expected. Give the colors as `palette` in `labels.json`.",
        "id-mask": "The masks hold ids where RGB colors were expected.",
        "palette-mask": "The palettes of several files contradict each other. Give the colors as `palette`, or "
        "define the indices by `ids`.",
        "alpha-mask": "The masks differ only in transparency, which is not read. Export them as ids.",
        "smeared-mask": "JPEG compression or interpolation changed ids. Export as PNG, and resize with nearest "
        "neighbor.",
        "void-mask": "No pixel has a class, so there is nothing to learn or score. Is this a test split without "
        "labels?",
        "leak": "The same image is in two splits. Remove it from one.",
        "unusable-data": "`check-data` found errors; each is in the table above the line ([Data](data.md#check-data)).",
        "predictions": "The predictions do not fit the data set: one `NAME.png` of class ids for each image, no "
        "others.",
        "import": "The export of an annotation tool cannot be imported ([From annotation "
        "tools](data.md#from-annotation-tools)).",
        "data": "The data cannot be used; the line says why. `ddsm-zoo check-data` lists all problems at once.",
    },
    "Training": {
        "unknown-recipe": "`ddsm-zoo recipes` prints all names. Your own file is `mine.toml` or `./mine.toml`.",
        "run-exists": "The folder holds a run. Continue it with `--resume`, or choose another folder.",
        "other-recipe": "`--resume` needs the recipe of the run. Only `epochs`, `workers`, `save_every` and "
        "`patience` may change.",
        "other-data": "The images, the classes, what `labels.json` says of their values or the initial weights differ "
        "from those that the run began with. Use the same, or a new folder.",
        "damaged-state": "The saved training state cannot be read. Delete it to train from the start.",
        "folder-in-use": "Another process trains in this folder. Wait for it, stop it, or choose another folder. The "
        "lock of a dead process on another machine ends after 25 seconds.",
        "shared-memory": "Containers get 64 MB of shared memory by default. Use `docker run --shm-size=8g` or "
        "`--ipc=host`, or `--workers 0`.",
        "worker-killed": "A data loading process was killed, usually because it ran out of memory. Continue with "
        "`--resume` and fewer `--workers`.",
        "worker": "Data loading processes cannot start: the machine limits processes, memory or open files (`ulimit "
        "-a`). Use fewer `--workers`.",
        "frozen-layers": "Frozen layers must have pretrained weights. Freeze none, or use `--pretrained`.",
        "processes": "Distributed training needs a batch size that the number of processes divides, and data "
        "parallelism ([Scaling](scaling.md)).",
        "diverged": "The loss or a weight is NaN or infinite. The last saved state is intact. Lower `lr` in a new "
        "folder, and check the labels.",
    },
}
KINDS: dict[str, str] = {kind: text for kinds in SECTIONS.values() for kind, text in kinds.items()}


class UserError(Exception):
    """Error that a user can cause, first base of every error class of this package.

    The text of the error names the value that came, what was expected and what to do. The attributes hold the
    same facts, and stay when the wording changes. Those that an error does not have are None.

    Attributes:
        kind: Word for the problem, a key of `KINDS`, such as ``unknown-model``.
        name: Name of the argument, field, class or model that is wrong.
        path: File or folder.
        got: Value that came.
        expected: Value that was expected, or words for it.
    """

    kind: str = "argument"
    name: str | None = None
    path: str | None = None
    got: Any = None
    expected: Any = None

    def __init__(
        self,
        text: object,
        *,
        kind: str | None = None,
        name: str | None = None,
        path: str | os.PathLike[str] | None = None,
        got: Any = None,
        expected: Any = None,
    ) -> None:
        super().__init__(text)
        facts = {"kind": kind, "name": name, "path": path and os.fspath(path), "got": got, "expected": expected}
        self.__dict__ |= {key: value for key, value in facts.items() if value is not None}

    @classmethod
    def of(
        cls: type[ErrorT],
        name: str,
        got: Any,
        expected: str,
        hint: str = "",
        *,
        kind: str | None = None,
        shown: str | None = None,
    ) -> ErrorT:
        """Create the error of a value: "NAME is GOT, expected EXPECTED; HINT".

        Args:
            name: Name of the argument or field.
            got: Its value.
            expected: Words for the values that it may have.
            hint: Words for what to do, if that does not follow from ``expected``.
            kind: Word for the problem, by default that of the class.
            shown: Text for the value, by default the value itself.
        """
        text = f"{name} is {got if shown is None else shown}, expected {expected}{hint and f'; {hint}'}"
        return cls(text, kind=kind, name=name, got=got, expected=expected)


class ArgumentError(UserError, ValueError):
    """Argument that a function cannot take."""

    kind = "argument"


class ArgumentTypeError(UserError, TypeError):
    """Argument of a type that a function cannot take, or one that it does not have."""

    kind = "argument"


class MissingFileError(UserError, FileNotFoundError):
    """File or folder that does not exist."""

    kind = "missing-file"


class PackageError(UserError, LookupError):
    """Package of an extra that is not installed."""

    kind = "missing-package"

    @classmethod
    def needed(cls, task: str, package: str | None, extra: str) -> PackageError:
        """Create the error of a missing package: "TASK the package PACKAGE: pip install 'ddsm-zoo[EXTRA]'"."""
        command = f"pip install 'ddsm-zoo[{extra}]'"
        return cls(f"{task} the package {package}: {command}", name=package, expected=command)


def facts(error: BaseException) -> dict[str, Any]:
    """Return the facts of an error as arguments of another, which says where it happened. Empty for other errors."""
    return {key: vars(error)[key] for key in ("name", "path", "got", "expected") if key in vars(error)}
