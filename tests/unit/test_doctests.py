"""The examples of docstrings give what they show."""

from __future__ import annotations

import doctest
import importlib

import pytest

from tests.helpers.imports import module_files

WITH_EXAMPLES = sorted(name for name, path in module_files().items() if ">>> " in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples(name: str) -> None:
    if name.startswith("nemo_tapo.runtime.local."):  # some of these import Megatron-core, which needs its shim first
        importlib.import_module("nemo_tapo.runtime.local.cpu_shim").apply()
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried and not failed
