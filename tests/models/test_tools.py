"""Tools that other people write for any network: hooks, adapters, tracers, wrappers, copies, other precision."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import timm
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

import ddsm_zoo
from ddsm_zoo.models import Segmenter
from tests.support.errors import raises
from tests.support.together import run_together

NAMES = ["uper_tiny", "uper_dcn_tiny", "uper_ddsm_tiny", "deeplabv3plus_ddsm_tiny"]


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}


@pytest.mark.parametrize("name", NAMES)
def test_backward_hooks_on_convolutions(name: str) -> None:
    """Which make what a module returns a view that nobody may change."""
    model = ddsm_zoo.create_model(name, num_classes=5).eval()
    called = []
    for path, module in convolutions(model).items():
        module.register_full_backward_hook(lambda *_, path=path: called.append(path))
    model(torch.randn(1, 3, 64, 96, requires_grad=True)).sum().backward()
    assert set(called) == convolutions(model).keys()


@pytest.mark.parametrize("name", NAMES)
def test_what_a_hook_keeps_stays_what_the_layer_returned(name: str) -> None:
    model = ddsm_zoo.create_model(name, num_classes=5).eval()
    kept: dict[str, tuple[Tensor, Tensor]] = {}
    plain = {path: module for path, module in convolutions(model).items() if type(module).forward is nn.Conv2d.forward}
    for path, module in plain.items():
        module.register_forward_hook(lambda _, args, out, path=path: kept.__setitem__(path, (args[0].clone(), out)))
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 96))
    assert kept.keys() == plain.keys()
    for path, (given, out) in kept.items():
        layer = plain[path]
        expected = F.conv2d(given, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)


class Adapter(nn.Module):
    """A convolution with a low-rank branch beside it, as PEFT puts in its place."""

    def __init__(self, base: nn.Conv2d) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Conv2d(base.in_channels, 4, 1, bias=False)
        self.up = nn.Conv2d(4, base.out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + self.up(self.down(x))
        return out

    def merged(self) -> nn.Conv2d:
        merged = copy.deepcopy(self.base)
        merged.weight.data += torch.einsum("oihw,ichw->ochw", self.up.weight, self.down.weight)
        return merged


def test_merging_adapters_changes_nothing() -> None:
    model = ddsm_zoo.create_model("uper_ddsm_tiny", num_classes=5).double().eval()
    pointwise = [path for path, layer in convolutions(model).items() if path.endswith("_projection")]
    assert len(pointwise) == 6
    for path in pointwise:
        model.set_submodule(path, Adapter(model.get_submodule(path)).double())
    image = torch.randn(1, 3, 64, 96).double()
    with torch.no_grad():
        apart = model(image)
        for path in pointwise:
            model.set_submodule(path, model.get_submodule(path).merged())
        torch.testing.assert_close(model(image), apart, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch_gives_no_logits(name: str) -> None:
    model = ddsm_zoo.create_model(name, num_classes=5).eval()
    assert model(torch.empty(0, 3, 64, 96)).shape == (0, 5, 64, 96)


@pytest.mark.parametrize("size", [(64, 96), (128, 128)])
def test_jit_traces_for_all_sizes_whatever_the_example(size: tuple[int, int]) -> None:
    """At 128 x 128 the position tables of 8 cells are as large as a level."""
    model = ddsm_zoo.create_model("uper_ddsm_tiny", num_classes=5).eval()
    image = torch.randn(1, 3, 96, 160)
    with torch.no_grad():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing itself, which torch announces the end of
            traced = torch.jit.trace(model, torch.randn(1, 3, *size), check_trace=False)
        torch.testing.assert_close(traced(image), model(image), atol=1e-4, rtol=1e-4)


def test_the_older_onnx_exporter() -> None:
    """By `torch.jit.trace`, with sides left open; at 128 x 128 some maps happen to be as large as their tables."""
    model = ddsm_zoo.create_model("uper_ddsm_tiny", num_classes=5).eval()
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of this exporter
        sides = {"images": {2: "height", 3: "width"}}
        options = {"opset_version": 17, "input_names": ["images"], "dynamic_axes": sides}
        torch.onnx.export(model, (torch.randn(1, 3, 128, 128),), file, dynamo=False, **options)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for size in ((128, 128), (65, 97)):
        image = torch.randn(1, 3, *size)
        (found,) = session.run(None, {"images": image.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), model(image), atol=1e-4, rtol=1e-4)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compile": lambda model: torch.compile(model, backend="eager"),
    "DataParallel": nn.DataParallel,
    "AveragedModel": AveragedModel,
    "ModelEmaV3": ModelEmaV3,
    "compile around DataParallel": lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_model_is_saved_as_the_model_inside(tmp_path: Path, wrapper: str) -> None:
    model = ddsm_zoo.create_model("uper_ddsm_tiny", num_classes=5, auxiliary=True).eval()
    wrapped = WRAPPERS[wrapper](model)
    ddsm_zoo.save_pretrained(wrapped, tmp_path)
    loaded = ddsm_zoo.from_pretrained(tmp_path)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    assert ddsm_zoo.resolve_data_config(wrapped) == ddsm_zoo.resolve_data_config(model)


def test_a_model_whose_parts_are_compiled_is_saved_and_filled(tmp_path: Path) -> None:
    model = ddsm_zoo.create_model("uper_ddsm_tiny", num_classes=5)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.backbone = torch.compile(model.backbone, backend="eager")
    ddsm_zoo.save_pretrained(model, tmp_path)
    state = ddsm_zoo.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())


@pytest.mark.parametrize("other", [nn.Conv2d(3, 3, 1), nn.DataParallel(nn.Conv2d(3, 3, 1)), "uper_ddsm_tiny"])
def test_what_holds_no_model_of_ours_is_not_saved(tmp_path: Path, other: Any) -> None:
    with raises(TypeError, name="model", got=type(other).__name__):
        ddsm_zoo.save_pretrained(other, tmp_path / "saved")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_state_dict_of_a_wrapped_model_fits_a_bare_one(wrapper: str) -> None:
    wrapped = WRAPPERS[wrapper](ddsm_zoo.create_model("uper_tiny", num_classes=5))
    bare = ddsm_zoo.create_model("uper_tiny", num_classes=5)
    bare.load_state_dict(wrapped.state_dict())
    found = dict(wrapped.named_parameters())
    for name, tensor in bare.named_parameters():
        assert any(torch.equal(tensor, other) for key, other in found.items() if key.endswith(name))


DISTRIBUTED = """
import torch, torch.distributed as dist
from torch.nn.functional import cross_entropy
import ddsm_zoo

dist.init_process_group("gloo")
torch.manual_seed(0)
model = ddsm_zoo.create_model("uper_ddsm_tiny", num_classes=5, auxiliary=True).eval()
model = torch.nn.parallel.DistributedDataParallel(model)
torch.manual_seed(dist.get_rank())
images, ids = torch.randn(2, 3, 32, 64), torch.randint(5, (2, 32, 64))
for _ in range(2):
    model.zero_grad()
    both = model(images, auxiliary=True)
    (cross_entropy(both["out"], ids) + 0.4 * cross_entropy(both["aux"], ids)).backward()
print(*[parameter.grad.double().sum().item() for parameter in model.parameters()])
dist.destroy_process_group()
"""


def test_processes_agree_on_the_gradients_of_both_heads(tmp_path: Path) -> None:
    first, second = run_together(["-c", DISTRIBUTED], tmp_path)
    assert first
    assert first == second


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_compute_the_same(clone: Callable[[nn.Module], nn.Module]) -> None:
    model = ddsm_zoo.create_model("uper_ddsm_tiny", num_classes=5).eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(clone(model)(image), model(image))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_half_precision(name: str, dtype: torch.dtype) -> None:
    model = ddsm_zoo.create_model(name, num_classes=5).eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = model(image)
        found = model.to(dtype)(image.to(dtype))
    assert found.dtype == dtype
    assert (found.float() - expected).abs().mean() < 0.1 * expected.abs().mean()


@pytest.mark.parametrize(
    ("images", "got", "advice"),
    [
        (torch.rand(1, 4, 64, 96), (1, 4, 64, 96), ""),
        (torch.rand(1, 64, 96, 3), (1, 64, 96, 3), "permute"),
        (torch.rand(3, 64, 96), (3, 64, 96), "[None]"),
        (torch.rand(1, 3, 0, 96), (1, 3, 0, 96), ""),
        (torch.zeros(1, 3, 64, 96, dtype=torch.uint8), "torch.uint8", "create_transform"),
    ],
)
def test_what_is_no_batch_of_images_is_one_line(images: Tensor, got: object, advice: str) -> None:
    model = ddsm_zoo.create_model("uper_tiny", num_classes=5).eval()
    for call in (model, model.forward_features):
        with raises(ValueError, kind="array", name="x", got=got) as error:
            call(images)
        assert advice in str(error.value)


def test_torchs_conversion_to_synchronized_norms_is_loud_where_it_loses_activations() -> None:
    """In timm's EfficientNets the activation is part of the norm, and torch's function leaves it out."""
    model = ddsm_zoo.create_model("uper", backbone="test_efficientnet", width=16, num_classes=5).eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = model(image)
        for convert in (Segmenter.sync_batch_norm, timm.layers.convert_sync_batchnorm):
            safe = copy.deepcopy(model)
            torch.testing.assert_close((convert(safe) or safe)(image), expected, atol=1e-5, rtol=1e-5)
        broken = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
        with raises(ValueError, kind="argument", name="body.bn1", got=12):
            broken(image)


def test_torchs_conversion_is_fine_where_norms_have_no_activation() -> None:
    model = ddsm_zoo.create_model("uper_tiny", num_classes=5).eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = model(image)
        found = nn.SyncBatchNorm.convert_sync_batchnorm(model)(image)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
