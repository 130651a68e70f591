"""Serve the page on this machine alone, until Ctrl-C."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from werkzeug.serving import WSGIRequestHandler, make_server

from nemo_tapo.watch.web_app import WatchApp

HOST = "127.0.0.1"


class QuietHandler(WSGIRequestHandler):
    """Handles requests without a line for each in the terminal."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Print nothing."""

    def version_string(self) -> str:
        """Return what the Server header says."""
        return "nemo-tapo"


def serve(folders: Sequence[Path], port: int | None, default_port: int) -> None:
    """Serve the runs in `folders` until Ctrl-C, at `port` or else at the default one or a free one.

    Raises ValueError if `port` cannot be used.
    """
    app: Any = WatchApp(folders)
    with open_socket(port, default_port) as listening:
        number = listening.getsockname()[1]
        server = make_server(HOST, number, app, threaded=True, request_handler=QuietHandler, fd=listening.fileno())
        print(f"watching {', '.join(map(str, folders))} at http://{HOST}:{number}/ (Ctrl-C ends it)", flush=True)
        server.serve_forever()  # until Ctrl-C


def open_socket(port: int | None, default_port: int) -> socket.socket:
    """Return a socket that listens on this machine's loopback alone. Raises ValueError if `port` cannot be used."""
    try:
        return socket.create_server((HOST, default_port if port is None else port))
    except (OSError, OverflowError) as error:
        if port is not None:
            raise ValueError(f"--port {port} cannot be used ({error}): choose another, or leave it out.") from None
        return socket.create_server((HOST, 0))
