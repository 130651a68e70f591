"""Lets Python 3.11 import NeMo-RL, whose configs are TypedDicts inside pydantic models.

Pydantic takes those from `typing_extensions` only, below Python 3.12; NeMo-RL itself wants 3.13. The interpreter runs
this file at its start where the folder is on PYTHONPATH (tools/test.sh puts it there for tests/contract).
"""

import sys
import typing

if sys.version_info < (3, 12):
    import typing_extensions

    typing.TypedDict = typing_extensions.TypedDict  # type: ignore[assignment]
