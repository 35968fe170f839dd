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
from tests.support.errors import raises
from tests.support.tiny_training import FULL, Blobs, Uneven, build_network, epochs_of, recipe, size_for
from tests.support.together import run_together

ROOT = Path(__file__).resolve().parents[2]

# name: (network, images, fields of the recipe); three steps each unless it says otherwise
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "group norm": ("Net", 12, {}),
    "no norm": ("Linear", 12, {}),
    "adamw, averaged, clipped": ("Net", 12, {"optimizer": "adamw", "lr": 0.01, "ema_decay": 0.9, "clip_norm": 0.1}),
    "accumulated": ("Net", 14, {"batch_size": 2, "gradient_accumulation": 3}),
    "weighted classes": ("Net", 12, {"class_weights": (0.2, 1.0, 3.0), "label_smoothing": 0.1}),
    "one small batch": ("Net", 3, {"epochs": 3}),
    "bf16": ("Net", 12, {"precision": "bf16"}),
    "a model of the zoo": ("uper_ddsm_lite0", 12, {"lr": 1e-3}),
}
EVERYWHERE = {"epochs": 1, "power": 0.0}
RESUMED = {**FULL, "power": 0.0, "clip_norm": 0.1, "batch_size": 2}

TRAIN = """
import json, logging, os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from ddsm_zoo.training.loop import fit
from tests.support.tiny_training import Blobs, Net, Uneven, build_network, recipe, size_for

out, cases, resumed = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])


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

for epochs in (1, 2):
    options = recipe(**{**resumed, "epochs": epochs})
    fit(started_anywhere("Net"), options, Uneven(14), Blobs(5), out / "resumed", resume=epochs == 2)

heard = []
listener = logging.Handler(logging.WARNING)
listener.emit = lambda record: heard.append(record.getMessage())
logging.getLogger("ddsm_zoo").addHandler(listener)
warnings = {}
for name, norm, frozen in (("batch", "batch", "none"), ("frozen", "batch", "backbone"), ("group", "group", "none")):
    heard.clear()
    fit(Net(norm=norm), recipe(epochs=1, frozen_norms=frozen), Blobs(4), Blobs(2), out / f"warned-{name}")
    warnings[name] = list(heard)

torch.distributed.destroy_process_group()
print(json.dumps({"seen": seen, "interrupted": summary["interrupted"], "warnings": warnings}))
"""


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of the runs of two processes, and what each said."""
    out = tmp_path_factory.mktemp("together")
    cases = {name: (network, count, {**EVERYWHERE, **fields}) for name, (network, count, fields) in CASES.items()}
    outputs = run_together(["-c", TRAIN, str(out), json.dumps(cases), json.dumps(RESUMED)], ROOT)
    return out, [json.loads(output.splitlines()[-1]) for output in outputs]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(out / "last" / "model.safetensors")


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one(name: str, together: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    network, count, fields = CASES[name]
    data = Uneven(count, size_for(network))
    fit(build_network(network), recipe(**{**EVERYWHERE, **fields}), data, Blobs(5), tmp_path)
    tolerance = 1e-2 if name == "bf16" else 1e-5
    torch.testing.assert_close(weights(together[0] / name), weights(tmp_path), rtol=tolerance, atol=tolerance)
    for ours, alone in zip(epochs_of(together[0] / name), epochs_of(tmp_path), strict=True):
        assert ours["loss"] == pytest.approx(alone["loss"], rel=tolerance)
        assert ours["lr"] == alone["lr"]
    ours, alone = (load_state(out / "last" / "state.pt")["position"]["taps"] for out in (together[0] / name, tmp_path))
    assert ours.keys() == alone.keys()
    for sampler, counts in alone.items():  # of all images of the last step, whichever process has them
        assert [ours[sampler][field] for field in ("taps", "positions")] == [counts["taps"], counts["positions"]]


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


def test_resumed_they_go_on_as_one(together: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    out, _ = together
    fit(build_network("Net"), recipe(**{**RESUMED, "epochs": 2}), Uneven(14), Blobs(5), tmp_path)
    torch.testing.assert_close(weights(out / "resumed"), weights(tmp_path), rtol=1e-5, atol=1e-5)
    assert len(epochs_of(out / "resumed")) == 2
    both, alone = (load_state(run / "last" / "state.pt") for run in (out / "resumed", tmp_path))
    for name in ("model", "average", "optimizer"):
        torch.testing.assert_close(both[name], alone[name], rtol=1e-5, atol=1e-5)


def test_batch_norm_on_cpus_is_warned_of_once(together: tuple[Path, list[dict[str, Any]]]) -> None:
    first, second = (said["warnings"] for said in together[1])
    (warning,) = first["batch"]
    assert warning.startswith("batch norm sees the 2 images of one process, not all 4 of the batch")
    assert 'norm = "group"' in warning
    assert [first["frozen"], first["group"], *second.values()] == [[]] * 5


@pytest.mark.parametrize("engine", ["fsdp", "deepspeed", "megatron_lm"])
def test_a_run_that_would_divide_the_model_is_refused(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{engine.upper()}", "true")  # as accelerate launch sets it
    with raises(ValueError, kind="processes", got=engine.upper()) as error:
        fit(build_network("Net"), recipe(), Blobs(4), Blobs(4), tmp_path / "out")
    assert f"--use_{engine} " in str(error.value)
    assert not (tmp_path / "out").exists()
