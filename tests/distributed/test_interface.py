"""Which network interface ranks talk over, for where they meet."""

from __future__ import annotations

import socket

import psutil
import pytest

from nemo_tapo.runtime.local.worker import find_network_interface


@pytest.mark.parametrize("meeting", ["file:///tmp/ranks", "tcp://127.0.0.1:5000", "tcp://127.0.0.3:5000"])
def test_ranks_of_one_machine_talk_over_loopback(meeting: str) -> None:
    assert find_network_interface(meeting) == "lo"


def test_ranks_that_meet_at_an_address_others_see_talk_over_its_interface() -> None:
    outside = [
        (name, entry.address)
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family == socket.AF_INET and not entry.address.startswith("127.")
    ]
    if not outside:
        pytest.skip("this machine has the loopback interface only")
    towards_itself = {find_network_interface(f"tcp://{address}:5000") for _, address in outside}
    assert towards_itself == {name for name, _ in outside}
