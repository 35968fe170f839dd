"""The Triton path: in its interpreter, under the compiler, and compiled for real without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from functorch.compile import make_boxed_func
from torch import Tensor, library
from torch._dynamo.backends.common import aot_autograd

from ddsm_zoo.ops import sampled_attention
from ddsm_zoo.ops import triton as gpu
from tests.support.attention_cases import random_case

# Compiles both kernels as a launch on an Ampere and on a Hopper GPU would
COMPILE = """
import warnings
warnings.simplefilter("ignore")
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from ddsm_zoo.ops import triton as gpu

usual = {"kernel_size": 3, "block": 16, "key_block": 64, "value_block": 64}
# one channel and one column, which a launch takes for constants
blocks = {"key_block": gpu.channel_block(1), "value_block": gpu.channel_block(3)}
narrow = {"kernel_size": 1, "block": 64, **blocks, "key_channels": 1, "width": 1}
float32 = {"log_sum", "grad_key", "grad_value"}
scalars = {"positions", "height", "width", "key_channels", "value_channels"}
launches = (("*fp32", 80, usual), ("*bf16", 90, usual), ("*fp16", 90, narrow))
kernels = (gpu._forward_kernel, gpu._backward_kernel)
for kernel, (dtype, architecture, constants) in ((kernel, launch) for kernel in kernels for launch in launches):
    signature = {
        name: "constexpr" if name in constants else "i32" if name in scalars else "*fp32" if name in float32 else dtype
        for name in kernel.arg_names
    }
    source = ASTSource(kernel, signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32))
    print(kernel.__name__, dtype, architecture, len(compiled.asm["cubin"]))
"""


@triton.jit
def _last_pixel(found, image, height, width):
    """The row number of the bottom right pixel of an image, as the kernels compute it."""
    inside = tl.full((1,), 1, tl.int1)
    image = tl.full((1,), image, tl.int32)
    y, x = tl.full((1,), height - 1.0, tl.float32), tl.full((1,), width - 1.0, tl.float32)
    index, _, _, _, _ = gpu._neighbor(y, x, 0, image, inside, height, width)
    tl.store(found + tl.arange(0, 1), index)


@pytest.mark.parametrize(("images", "height", "width"), [(1, 4096, 4096), (200, 4096, 4096), (1, 46341, 46341)])
def test_rows_of_large_maps_are_counted_without_overflow(images: int, height: int, width: int) -> None:
    found = torch.zeros(1, dtype=torch.int64)
    _last_pixel[(1,)](found, images - 1, height, width)
    assert found.item() == images * height * width - 1


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # by torch's own check
def test_registration_holds_what_it_promises() -> None:
    """torch's own checks: schema, shapes without data, derivative, and tracing of all of it."""
    inputs = [tensor.requires_grad_() for tensor in random_case(dtype=torch.float32)]
    outcome = library.opcheck(gpu.sampled_attention, (*inputs, 3))
    assert set(outcome.values()) == {"SUCCESS"}


def test_compiler_keeps_it_whole() -> None:
    nodes: list[str] = []

    def remember(module: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        nodes.extend(str(node.target) for node in module.graph.nodes if node.op == "call_function")
        return module

    def attend(*inputs: Tensor) -> Tensor:
        return sampled_attention(*inputs, kernel_size=3, backend="triton") * 2

    inputs = random_case(dtype=torch.float32)
    out = torch.compile(attend, fullgraph=True, backend=remember)(*inputs)
    assert [name for name in nodes if "ddsm_zoo" in name] == ["ddsm_zoo.sampled_attention"]
    assert not [name for name in nodes if "gather" in name]
    torch.testing.assert_close(out, attend(*inputs))


def test_compiler_keeps_the_backward_pass_whole() -> None:
    nodes: list[str] = []

    def remember(module: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        nodes.extend(str(node.target) for node in module.graph.nodes if node.op == "call_function")
        return make_boxed_func(module.forward)

    def attend(*inputs: Tensor) -> Tensor:
        return sampled_attention(*inputs, kernel_size=3, backend="triton")

    compiled = torch.compile(attend, fullgraph=True, backend=aot_autograd(fw_compiler=remember, bw_compiler=remember))
    inputs = [tensor.requires_grad_() for tensor in random_case(dtype=torch.float32)]
    grads = torch.autograd.grad(compiled(*inputs).sum(), inputs)
    names = [name for name in nodes if "ddsm_zoo" in name]
    assert names == ["ddsm_zoo.sampled_attention.default", "ddsm_zoo.sampled_attention_backward.default"]
    assert not [name for name in nodes if "gather" in name]
    for grad, expected in zip(grads, torch.autograd.grad(attend(*inputs).sum(), inputs), strict=True):
        torch.testing.assert_close(grad, expected)


def test_kernels_compile_for_gpus() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.split("\n")[:-1]
    assert len(lines) == 6
    assert all(int(line.split()[-1]) > 5_000 for line in lines)
