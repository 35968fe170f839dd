"""The Triton path: in its interpreter, under the compiler, and compiled for real without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, library

from ddsm_zoo.ops import gpu, sampled_attention

# Compiles both kernels as a launch on an Ampere and on a Hopper GPU would
COMPILE = """
import warnings
warnings.simplefilter("ignore")
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from ddsm_zoo.ops import gpu

constants = {"kernel_size": 3, "block": 16, "key_block": 64, "value_block": 64}
float32 = {"log_sum", "grad_key", "grad_value"}
scalars = {"positions", "height", "width", "key_channels", "value_channels"}
launches = (("*fp32", 80), ("*bf16", 90))
kernels = (gpu._forward_kernel, gpu._backward_kernel)
for kernel, (dtype, architecture) in ((kernel, launch) for kernel in kernels for launch in launches):
    signature = {
        name: "constexpr" if name in constants else "i32" if name in scalars else "*fp32" if name in float32 else dtype
        for name in kernel.arg_names
    }
    source = ASTSource(kernel, signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32))
    print(kernel.__name__, dtype, architecture, len(compiled.asm["cubin"]))
"""


def tensors(dtype: torch.dtype, channels: tuple[int, int] = (6, 5)) -> list[Tensor]:
    query, key = torch.randn(2, 2, channels[0], 4, 5).unbind()
    value, offset, modulation = torch.randn(2, channels[1], 4, 5), 3 * torch.randn(2, 18, 4, 5), torch.rand(2, 9, 4, 5)
    return [tensor.to(dtype) for tensor in (query, key, value, offset, modulation)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_half_precision_is_rounded_only_at_the_end(dtype: torch.dtype, tolerance: float) -> None:
    """The kernel computes in float32, so what is left is the rounding of its results."""
    inputs = [tensor.requires_grad_() for tensor in tensors(dtype)]
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    out = sampled_attention(*inputs, kernel_size=3, backend="triton")
    expected = sampled_attention(*exact, kernel_size=3, backend="reference")
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=0)
    upstream = torch.randn_like(out)
    grads = torch.autograd.grad(out, inputs, upstream)
    targets = torch.autograd.grad(expected, exact, upstream.double())
    for grad, target in zip(grads, targets, strict=True):
        assert grad.dtype == dtype
        assert (grad.double() - target).abs().max() <= tolerance * target.abs().max()


def test_channels_that_fill_no_block() -> None:
    inputs = tensors(torch.float32, channels=(67, 33))
    expected = sampled_attention(*(tensor.double() for tensor in inputs), kernel_size=3, backend="reference")
    out = sampled_attention(*inputs, kernel_size=3, backend="triton")
    torch.testing.assert_close(out.double(), expected, atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # by torch's own check
def test_registration_holds_what_it_promises() -> None:
    """torch's own checks: schema, shapes without data, derivative, and tracing of all of it."""
    inputs = [tensor.requires_grad_() for tensor in tensors(torch.float32)]
    outcome = library.opcheck(gpu.sampled_attention, (*inputs, 3))
    assert set(outcome.values()) == {"SUCCESS"}


def test_compiler_keeps_it_whole() -> None:
    nodes: list[str] = []

    def remember(module: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        nodes.extend(str(node.target) for node in module.graph.nodes if node.op == "call_function")
        return module

    def attend(*inputs: Tensor) -> Tensor:
        return sampled_attention(*inputs, kernel_size=3, backend="triton") * 2

    inputs = tensors(torch.float32)
    out = torch.compile(attend, fullgraph=True, backend=remember)(*inputs)
    assert [name for name in nodes if "ddsm_zoo" in name] == ["ddsm_zoo.sampled_attention"]
    assert not [name for name in nodes if "gather" in name]
    torch.testing.assert_close(out, attend(*inputs))


def test_kernels_compile_for_gpus() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.split("\n")[:-1]
    assert len(lines) == 4
    assert all(int(line.split()[-1]) > 10_000 for line in lines)
