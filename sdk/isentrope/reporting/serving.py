"""A run's page while it trains: served on this machine, renewed as iterations are written."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

from attrs import define, field

from isentrope.errors import ConfigError
from isentrope.reporting._episodes import EpisodeFile
from isentrope.reporting._history import History
from isentrope.reporting.pages import page_of_run
from isentrope.runs import Run

_HERE = "127.0.0.1"
_CHUNK = re.compile(r"/chunk-(\d+)")


def view(
    run: Run | str | Path, *, port: int = 0, tell: Callable[[str], object] | None = None
) -> None:
    """Serve a run's page on this machine alone until Ctrl-C; it follows a run that is training.

    port: 0 for one that is free. tell: called with the page's address; prints it by default. Unlike
    a report's file, the page has the episodes of every iteration.

    Raises `ConfigError` where there is no run, or the port is taken.
    """
    shown = _Shown(run if isinstance(run, Run) else Run(Path(run)))
    shown.page()  # what cannot be read is said now, and not to a browser

    class Handler(_Handler):
        run = shown

    try:
        server = _Server((_HERE, port), Handler)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"Port {port} cannot be served on: {reason}.") from error
    with server:
        address = f"http://{_HERE}:{server.server_port}/"
        (tell or print)(address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


class _Server(ThreadingHTTPServer):
    """One that keeps quiet where a browser has gone away."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@define
class _Shown:
    """A run, and as much of its episodes as was read; one request at a time."""

    run: Run
    episodes: EpisodeFile = field(init=False)
    _lock: Lock = field(factory=Lock, init=False)

    def __attrs_post_init__(self) -> None:
        self.episodes = EpisodeFile(self.run)

    def page(self, *, scripts: bool = True) -> str:
        with self._lock:
            stamp = self.stamp()
            self.episodes.update()
            history = History.read(self.run)
            return page_of_run(history, self.episodes, {}, live=stamp, scripts=scripts)

    def index(self) -> bytes:
        with self._lock:
            self.episodes.update()
            return self.episodes.index()

    def chunk(self, iteration: int) -> bytes | None:
        with self._lock:
            self.episodes.update()
            return self.episodes.chunk(iteration) if iteration in self.episodes.spans else None

    def stamp(self) -> str:
        """Return what changes whenever an iteration is written, or forgotten."""
        path = self.run.path / "metrics.jsonl"
        status = path.stat() if path.exists() else None
        return f"{status.st_ino}-{status.st_size}" if status else "none"


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    run: _Shown

    def do_GET(self) -> None:
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        if host not in (_HERE, "localhost"):  # a name that somebody made point here
            self.send_error(HTTPStatus.FORBIDDEN)
            return
        try:
            found = self._found()
        except (ConfigError, OSError) as error:
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, explain=str(error))
            return
        if found is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        kind, data = found
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(data)

    def _found(self) -> tuple[str, bytes] | None:
        page, text, octets = "text/html; charset=utf-8", "text/plain", "application/octet-stream"
        match self.path:
            case "/":
                return page, self.run.page().encode()
            case "/parts":
                return page, self.run.page(scripts=False).encode()
            case "/stamp":
                return text, self.run.stamp().encode()
            case "/chunk-index":
                return octets, self.run.index()
        wanted = _CHUNK.fullmatch(self.path)
        chunk = self.run.chunk(int(wanted[1])) if wanted else None
        return None if chunk is None else (octets, chunk)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # its own name
        """Say nothing."""
