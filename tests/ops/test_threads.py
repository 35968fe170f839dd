"""Parts of work on several threads: each done once, collected in order, and torch's own threads left alone."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ddsm_zoo.ops import sampled_attention, threads
from tests.support.attention_cases import random_case

THREADS = 3


@pytest.fixture(autouse=True)
def several_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


def test_results_are_collected_in_order_whatever_takes_long() -> None:
    workers: set[int] = set()
    collected: list[int] = []

    def compute(part: int) -> int:
        workers.add(threading.get_ident())
        time.sleep(0.02 if part % 5 == 0 else 0.001)
        return part

    threads.run(compute, 40, collected.append)
    assert collected == list(range(40))
    assert 1 < len(workers) <= THREADS
    assert threading.get_ident() not in workers


def test_few_results_wait_for_a_slow_one() -> None:
    started: list[int] = []
    others_wait = threading.Event()

    def compute(part: int) -> int:
        started.append(part)
        if part == 0:
            others_wait.wait(0.3)
        return part

    collected: list[int] = []
    threads.run(compute, 100, lambda part: collected.append(len(started)))
    assert collected[0] <= 5 * THREADS  # 97 others could have been started meanwhile
    assert len(collected) == 100


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_each_part_is_done_once(count: int) -> None:
    done: list[int] = []
    threads.run(done.append, count)
    assert sorted(done) == list(range(count))


@pytest.mark.parametrize("where", ["compute", "collect"])
def test_the_first_error_ends_the_work(where: str) -> None:
    done: list[int] = []

    def fail_at_three(part: int) -> int:
        if part == 3:
            raise MemoryError("no room for part 3")
        done.append(part)
        time.sleep(0.002)
        return part

    with pytest.raises(MemoryError, match="no room for part 3"):
        if where == "compute":
            threads.run(fail_at_three, 1000)
        else:
            threads.run(lambda part: part, 1000, fail_at_three)
    assert len(done) < 100
    threads.run(done.append, 10)  # and the threads are there for the next


def test_torch_has_the_threads_that_it_was_given() -> None:
    """One within the work, and as many as before in the caller and in threads to come."""
    found: list[int] = []
    threads.run(lambda part: found.append(torch.get_num_threads()), 9)
    assert found == [1] * 9
    assert torch.get_num_threads() == THREADS
    with ThreadPoolExecutor(1) as others:
        assert others.submit(torch.get_num_threads).result() == THREADS


def test_several_callers_do_not_wait_for_each_other() -> None:
    """Each part waits for one of the other caller."""
    barrier = threading.Barrier(2, timeout=10)
    done: list[int] = []

    def wait(part: int) -> None:
        barrier.wait()
        done.append(part)

    def call() -> None:
        torch.set_num_threads(THREADS)
        threads.run(wait, 6)

    with ThreadPoolExecutor(2) as callers:
        for caller in [callers.submit(call) for _ in range(2)]:
            caller.result()
    assert sorted(done) == sorted([*range(6), *range(6)])


def test_a_mode_that_watches_operators_sees_all_of_them() -> None:
    """Those of other threads would escape it, such as the memory that is measured to choose the size of tiles."""

    class Watching(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.seen += 1
            return func(*args, **(kwargs or {}))

    with Watching() as watching:
        threads.run(lambda part: torch.zeros(1), 20)
    assert watching.seen == 20


def test_gradients_do_not_depend_on_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, although chunks share pixels of the key and the value."""
    monkeypatch.setattr("ddsm_zoo.ops.cpu.CHUNK", 4 * 9 * 10)
    tensors = [tensor.float() for tensor in random_case(2, 5, 4, (13, 11), 3, spread=2)]

    def gradients() -> tuple[torch.Tensor, ...]:
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        return torch.autograd.grad(sampled_attention(*leaves, kernel_size=3, backend="cpu").square().sum(), leaves)

    found = [gradients() for _ in range(3)]
    torch.set_num_threads(1)
    for expected, *others in zip(gradients(), *found, strict=True):
        assert all(torch.equal(expected, other) for other in others)


FORKED = """
import os, sys, torch
from ddsm_zoo.ops import threads

torch.set_num_threads(8)
threads.run(lambda part: None, 8)  # some of the threads may still be starting when the process forks
for _ in range(5):
    child = os.fork()
    if child == 0:
        done = []
        threads.run(done.append, 8)
        os._exit(len(done) if torch.get_num_threads() == 8 else 1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code != 8:
        sys.exit(code)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_a_forked_process_starts_its_own_threads() -> None:
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], timeout=120, check=False)
    assert ran.returncode == 0
