"""Sixteen faults of what a repository holds: hashes, config.json and tensors that are wrong, or meant to do harm."""

from __future__ import annotations

import json
import pickle
import resource
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ddsm_zoo.hub.model_files import CONFIG_FILE, WEIGHTS_FILE
from ddsm_zoo.hub.safetensors_io import pack_tensors, read_tensors
from ddsm_zoo.zoo.factory import create_model
from tests.support.hub_server import HubServer
from tests.support.refusals import URI, Files, refusal
from tests.support.tiny_weights import logits, write


def with_config(files: Files, content: bytes) -> Files:
    return {**files, CONFIG_FILE: content}


def changed(**changes: Any) -> Callable[[Files], Files]:
    """The config with other values; those of a nested table are merged into it."""

    def change(files: Files) -> Files:
        config = json.loads(files[CONFIG_FILE])
        for key, value in changes.items():
            config[key] = {**config[key], **value} if isinstance(value, dict) else value
        return with_config(files, json.dumps(config).encode())

    return change


def with_tensors(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Files], Files]:
    def replace(files: Files) -> Files:
        with tempfile.TemporaryDirectory() as folder:
            tensors = read_tensors(write(Path(folder) / WEIGHTS_FILE, files[WEIGHTS_FILE]))
            return {**files, WEIGHTS_FILE: pack_tensors(change(tensors))}

    return replace


def with_weights(change: Callable[[bytes], bytes]) -> Callable[[Files], Files]:
    return lambda files: {**files, WEIGHTS_FILE: change(files[WEIGHTS_FILE])}


class Bomb:
    """Unpickling it would leave a file behind."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path("exploded").write_text, ("boom",)


def overlapping(weights: bytes) -> bytes:
    length = struct.unpack("<Q", weights[:8])[0]
    header = json.loads(weights[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    header[names[0]] = header[names[1]]
    packed = json.dumps(header).encode()
    return struct.pack("<Q", len(packed)) + packed + weights[8 + length :]


MILLION = 10**6
CONTENTS: dict[str, tuple[Callable[[Files], Files], str]] = {
    "sha256": (with_tensors(lambda s: {**s, "classifier.bias": torch.zeros(3)}), "has sha256"),
    "no JSON": (lambda files: with_config(files, b"\x00nothing"), "not valid JSON"),
    "empty": (lambda files: with_config(files, b""), "not valid JSON"),
    "unknown field": (changed(evil=1), "unknown field 'evil'"),
    "unknown nested field": (changed(pretrained_cfg={"evil": 1}), "unknown field 'evil'"),
    "wrong type": (changed(model_args={"width": "wide"}), "expected int"),
    "wrong type of labels": (changed(label_names="road"), "expected a list"),
    "number that is none": (changed(pretrained_cfg={"mean": [1e999, 0, 0]}), "not valid JSON"),
    "unknown architecture": (changed(architecture="pspnet_r50"), "expected a name that begins with uper_ddsm"),
    "decoder that is no name": (changed(model_args={"decoder": "../uper"}), "expected a name such as uper"),
    "unknown decoder": (
        changed(architecture="pspnet_ddsm", model_args={"decoder": "pspnet"}),
        "no decoder named 'pspnet'",
    ),
    "unknown backbone": (changed(model_args={"backbone": "resnet9999"}), "resnet9999"),
    "backbone elsewhere": (changed(model_args={"backbone": "hf-hub:evil/model"}), "expected the name of a timm model"),
    "million channels": (changed(model_args={"width": MILLION}), "expected 8 to 4096"),
    "million classes": (changed(num_classes=MILLION, model_args={"num_classes": MILLION}), "expected 1 to 65536"),
    "largest width": (changed(model_args={"width": 4096}), "another shape"),
    "million offsets": (changed(model_args={"ddsm": {"pixels": MILLION, "reading": 2}}), "square of an odd number"),
    **{
        f"{trick!r} as {key}": (changed(**value), expected)
        for trick in ("../../../etc/passwd", "/etc/passwd", "uper_ddsm_\0")
        for key, value, expected in (
            ("architecture", {"architecture": trick}, "begins with uper_ddsm|control characters"),
            ("backbone", {"model_args": {"backbone": trick}}, "name of a timm model"),
        )
    },
    "huge header": (with_weights(lambda w: struct.pack("<Q", 2**40) + w[8:]), "not a safetensors file"),
    "overlapping offsets": (with_weights(overlapping), "damaged"),
    "bytes for floats": (
        with_tensors(lambda s: {n: t.to(torch.uint8) for n, t in s.items()}),
        "types that weights never have",
    ),
    "integers for floats": (with_tensors(lambda s: {n: t.long() for n, t in s.items()}), "another type"),
    "extra tensor": (with_tensors(lambda s: {**s, "evil": torch.zeros(1)}), "1 tensors unexpected"),
    "name that draws": (with_tensors(lambda s: {**s, "evil\x1b[2J\n": torch.zeros(1)}), "first evil?[2J?"),
    "missing tensor": (with_tensors(lambda s: {n: s[n] for n in s if n != "classifier.bias"}), "1 tensors missing"),
    "NaN": (with_tensors(lambda s: {**s, "classifier.bias": torch.full((3,), torch.nan)}), "with NaN"),
    "pickle": (with_weights(lambda w: pickle.dumps(Bomb())), "is a pickle"),
}


@pytest.mark.parametrize("case", CONTENTS)
def test_a_repository_that_is_not_a_model(
    server: HubServer, cache: Path, files: Files, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(cache.parent)
    change, reason = CONTENTS[case]
    server.publish("someone/model", change(files))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    text = refusal(cache)
    assert any(part in text for part in reason.split("|")), text
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # in KiB; the largest width needs 5 GB
    assert not Path("exploded").exists()
    assert not [request for request in server.requests if "evil" in request.path]


def test_an_absurd_size_without_its_weights(server: HubServer, cache: Path, files: Files) -> None:
    """Nothing but the config says how large the model is."""
    server.publish("someone/model", changed(model_args={"width": 4096})(files))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "million parameters, expected at most 500 million" in refusal(cache, pretrained=False)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # in KiB


def test_a_repaired_repository_works(server: HubServer, cache: Path, files: Files, expected: Tensor) -> None:
    server.publish("someone/model", with_config(files, b"nothing"))
    refusal(cache)
    server.publish("someone/model", files)
    assert torch.equal(logits(create_model(URI, pretrained=True, cache_dir=cache)), expected)
