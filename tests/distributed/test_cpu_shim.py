"""Megatron-core still asks for CUDA where cpu_shim.py answers: an upgrade that moves a site fails here first."""

from __future__ import annotations

import inspect

import pytest
import torch
from megatron.core.models.common.language_module import language_module
from megatron.core.pipeline_parallel import p2p_communication, schedules

from nemo_tapo.runtime.local import cpu_shim

pytestmark = pytest.mark.distributed


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts everything back that `apply` may change."""
    monkeypatch.setattr(torch.cuda, "current_device", torch.cuda.current_device)
    monkeypatch.setattr(torch.cuda, "synchronize", torch.cuda.synchronize)
    monkeypatch.setattr(torch.Tensor, "cuda", torch.Tensor.cuda)
    monkeypatch.setattr(schedules, "torch", torch)


def site(path: str) -> object:
    module, _, name = path.rpartition(".")
    owners = {"torch.cuda": torch.cuda, "torch.Tensor": torch.Tensor, schedules.__name__: schedules}
    return getattr(owners[module], name)


@pytest.mark.usefixtures("untouched")
def test_every_site_of_the_table_is_touched_and_only_once() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: nothing to do")
    before = {path: site(path) for path in cpu_shim.SITES}
    assert cpu_shim.apply()
    once = {path: site(path) for path in cpu_shim.SITES}
    assert [path for path in before if before[path] is once[path]] == []
    assert cpu_shim.apply()
    assert site(cpu_shim.SITES[-1]) is once[cpu_shim.SITES[-1]]  # not wrapped a second time
    assert torch.empty(1, device=torch.cuda.current_device()).device.type == "cpu"
    assert schedules.torch.zeros([], dtype=torch.int, device="cuda").device.type == "cpu"
    assert schedules.torch.Tensor is torch.Tensor


@pytest.mark.usefixtures("untouched")
def test_nothing_is_touched_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = {path: site(path) for path in cpu_shim.SITES}
    assert not cpu_shim.apply()
    assert all(site(path) is value for path, value in before.items())


def test_a_decorator_that_compiles_gives_the_function_back_until_megatron_is_imported() -> None:
    def double(x: int) -> int:
        return 2 * x

    compiler = torch.compile
    with cpu_shim.without_compiler():
        assert torch.compile(double) is double
        assert torch.compile(dynamic=True)(double) is double
    assert torch.compile is compiler


def test_megatron_still_has_these_sites() -> None:
    assert inspect.getsource(schedules).count('torch.zeros([], dtype=torch.int, device="cuda")') == 3
    assert "torch.cuda.current_device()" in inspect.getsource(p2p_communication)
    assert "torch.cuda.synchronize()" in inspect.getsource(p2p_communication)
    assert "weight.data.cuda()" in inspect.getsource(language_module)
