"""Where ranks meet, and which network interface they talk over."""

from __future__ import annotations

import datetime
import socket

import psutil
import pytest

from nemo_tapo.runtime.local.actor import serve_store
from nemo_tapo.runtime.local.worker import find_network_interface, open_store


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


def test_the_port_at_which_ranks_of_several_nodes_meet_is_taken_before_they_know_it() -> None:
    """A port that was merely free when it was chosen may be another process's when rank 0 starts."""
    served = serve_store("127.0.0.1")
    with pytest.raises(OSError, match="in use"), socket.create_server(("127.0.0.1", served.port)):
        pass
    ranks = [open_store(f"tcp://127.0.0.1:{served.port}", 2, datetime.timedelta(seconds=20)) for _ in range(2)]
    ranks[0].set("who", "rank 0")
    assert ranks[1].get("who") == b"rank 0"
