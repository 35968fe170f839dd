"""Training on two real processes: the same global batches give the weights that one process gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from ddsm_zoo.training.checkpoint import load_state
from ddsm_zoo.training.loop import fit
from tests.support.tiny_training import FULL, Blobs, Uneven, build_network, epochs_of, recipe, size_for
from tests.support.together import run_together

ROOT = Path(__file__).resolve().parents[2]

# name: (network, images, fields of the recipe); three steps each unless it says otherwise
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "batch normalisation": ("Net", 12, {}),
    "without": ("Linear", 12, {}),
    "adamw, averaged, clipped": ("Net", 12, {"optimizer": "adamw", "lr": 0.01, "ema_decay": 0.9, "clip_norm": 0.1}),
    "accumulated": ("Net", 14, {"batch_size": 2, "gradient_accumulation": 3}),
    "weighted classes": ("Net", 12, {"class_weights": (0.2, 1.0, 3.0), "label_smoothing": 0.1}),
    "one small batch": ("Net", 3, {"epochs": 3}),
    "bf16": ("Net", 12, {"precision": "bf16"}),
    "a model of the zoo": ("uper_ddsm_lite0", 12, {"lr": 1e-3}),
}
EVERYWHERE = {"epochs": 1, "power": 0.0}
SHARDED = {**FULL, "power": 0.0, "clip_norm": 0.1, "batch_size": 2}

TRAIN = """
import json, os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from ddsm_zoo.training.loop import fit
from tests.support.tiny_training import Blobs, Uneven, recipe, size_for, build_network

out, cases, sharded = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
started = AcceleratorState.__init__


def as_on_gpus(self, *arguments, fsdp_plugin=None, **options):
    # accelerate shards on GPUs alone, though what it calls in torch works on the CPU just as well.
    started(self, *arguments, fsdp_plugin=fsdp_plugin, **options)
    if fsdp_plugin:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin




def started_anywhere(network):
    # What one process drew at random for a start, the other did not.
    model = build_network(network)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += int(os.environ["RANK"])
    return model


seen = {}
for name, (network, count, fields) in cases.items():
    data = Uneven(count, size_for(network))
    fit(started_anywhere(network), recipe(**fields), data, Blobs(5), out / name)
    seen[name] = data.seen
# One of the two is told to leave while the second step is in hand.
class Told(Uneven):
    def __getitem__(self, index):
        if torch.distributed.get_rank() == 1 and len(self.seen) == 3:
            signal.raise_signal(signal.SIGTERM)
        return super().__getitem__(index)

summary = fit(build_network("Net"), recipe(epochs=1, power=0.0), Told(12), Blobs(5), out / "told")

os.environ["ACCELERATE_USE_FSDP"] = "true"
refusals = []
for version in ("2", "1"):  # the first on what is a CPU, the second as if on GPUs
    os.environ["FSDP_VERSION"] = version
    try:
        fit(build_network("Net"), recipe(), Uneven(12), Blobs(5), out / "refused")
    except ValueError as error:
        refusals.append(str(error))
    AcceleratorState.__init__ = as_on_gpus
os.environ["FSDP_VERSION"] = "2"
for epochs in (1, 2):
    model = started_anywhere("Net")
    fit(model, recipe(**{**sharded, "epochs": epochs}), Uneven(14), Blobs(5), out / "sharded", resume=epochs == 2)
assert not any(hasattr(parameter, "placements") for parameter in model.parameters())

torch.distributed.destroy_process_group()
print(json.dumps({"seen": seen, "interrupted": summary["interrupted"], "refusals": refusals}))
"""


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of the runs of two processes, and what each said."""
    out = tmp_path_factory.mktemp("together")
    cases = {name: (network, count, {**EVERYWHERE, **fields}) for name, (network, count, fields) in CASES.items()}
    outputs = run_together(["-c", TRAIN, str(out), json.dumps(cases), json.dumps(SHARDED)], ROOT)
    return out, [json.loads(output.splitlines()[-1]) for output in outputs]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(out / "last" / "model.safetensors")


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one(name: str, together: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    network, count, fields = CASES[name]
    fit(
        build_network(network), recipe(**{**EVERYWHERE, **fields}), Uneven(count, size_for(network)), Blobs(5), tmp_path
    )
    tolerance = 1e-2 if name == "bf16" else 1e-5
    torch.testing.assert_close(weights(together[0] / name), weights(tmp_path), rtol=tolerance, atol=tolerance)
    for ours, alone in zip(epochs_of(together[0] / name), epochs_of(tmp_path), strict=True):
        assert ours["loss"] == pytest.approx(alone["loss"], rel=tolerance)
        assert ours["lr"] == alone["lr"]


@pytest.mark.parametrize("name", CASES)
def test_every_image_of_a_batch_falls_to_one_process(name: str, together: tuple[Path, list[dict[str, Any]]]) -> None:
    _, count, fields = CASES[name]
    first, second = (said["seen"][name] for said in together[1])
    epochs, batch = fields.get("epochs", 1), fields.get("batch_size", 4)
    used = count - count % batch or count
    assert len(first) + len(second) == epochs * used
    for epoch in range(epochs):
        share = [seen[epoch * len(seen) // epochs : (epoch + 1) * len(seen) // epochs] for seen in (first, second)]
        assert len({*share[0], *share[1]}) == used


def test_all_leave_when_one_is_told_to_and_one_alone_may_go_on(
    together: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    out, said = together
    assert [each["interrupted"] for each in said] == [True, True]
    assert load_state(out / "told" / "last" / "state.pt")["position"]["step"] == 2
    options = recipe(epochs=1, power=0.0)
    fit(build_network("Net"), options, Uneven(12), Blobs(5), out / "told", resume=True)
    fit(build_network("Net"), options, Uneven(12), Blobs(5), tmp_path)
    torch.testing.assert_close(weights(out / "told"), weights(tmp_path), rtol=1e-5, atol=1e-5)


def test_sharded_it_trains_and_resumes_as_one(together: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    out, said = together
    fit(build_network("Net"), recipe(**{**SHARDED, "epochs": 2}), Uneven(14), Blobs(5), tmp_path)
    torch.testing.assert_close(weights(out / "sharded"), weights(tmp_path), rtol=1e-5, atol=1e-5)
    assert len(epochs_of(out / "sharded")) == 2
    # The state is that of one process.
    sharded, alone = (load_state(run / "last" / "state.pt") for run in (out / "sharded", tmp_path))
    for name in ("model", "average", "optimizer"):
        torch.testing.assert_close(sharded[name], alone[name], rtol=1e-5, atol=1e-5)
    for each in said:
        assert "FSDP is configured, but accelerate does it on GPUs alone and this is cpu" in each["refusals"][0]
        assert "FSDP is configured in version 1, expected version 2" in each["refusals"][1]
