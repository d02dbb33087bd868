"""The page, live: on loopback only, at an address that can't be guessed."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from graphopt.errors import GraphoptError, UsageError

HOST = "127.0.0.1"


class Server(ThreadingHTTPServer):
    """Answers ``GET /TOKEN/`` with what `render` gives at that time; `url` says where. `serve_forever` runs it."""

    daemon_threads = True

    def __init__(self, render: Callable[[], str], port: int = 0) -> None:
        """Bind to loopback; `port` 0 is any free one.

        Raises:
            UsageError: the port is taken.
        """
        self.render = render
        self.token = secrets.token_urlsafe(24)
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise UsageError(f"can't serve on port {port} of {HOST}: {error.strerror or error}.") from error
        self.hosts = {f"{name}:{self.server_address[1]}" for name in (HOST, "localhost")}

    @property
    def url(self) -> str:
        """Where the page is, the token included."""
        return f"http://{HOST}:{self.server_address[1]}/{self.token}/"


class _Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]  # the server that made it
    server_version = "graphopt"
    sys_version = ""
    timeout = 20

    def do_GET(self) -> None:
        """The page to who knows the token and asks this host by its own name (other sites can't rebind to it)."""
        host = self.headers.get_all("Host", [])
        known = hmac.compare_digest(self.path.encode("utf-8", "replace"), f"/{self.server.token}/".encode())
        if len(host) != 1 or host[0].lower() not in self.server.hosts or not known:
            self._answer(403, "text/plain", "403: not the address that graphopt printed.\n")
            return
        try:
            self._answer(200, "text/html", self.server.render())
        except GraphoptError as error:
            self._answer(500, "text/plain", f"{error}\n")

    def _answer(self, status: int, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Content-Security-Policy": "frame-ancestors 'none'",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the address with its token stays out of logs."""
