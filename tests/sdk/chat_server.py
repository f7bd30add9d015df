"""A small OpenAI-compatible server: it behaves, or misbehaves as a test says."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODELS = ["halving", "halving-large"]


def halve(body: dict[str, Any]) -> str:
    """Play `guess` well, from nothing but the conversation."""
    opening, *turns = (m["content"] for m in body["messages"] if m["role"] != "system")
    low, high = map(int, re.findall(r"\d+", opening)[:2])
    for guess, answer in zip(turns[::2], turns[1::2], strict=True):
        if answer == "higher":
            low = int(guess) + 1
        elif answer == "lower":
            high = int(guess) - 1
    return str((low + high) // 2)


def completion(text: Any, reason: str = "stop", tokens: int | None = 7) -> dict[str, Any]:
    answer = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": reason,
            }
        ],
    }
    if tokens is not None:
        answer["usage"] = {"prompt_tokens": 11, "completion_tokens": tokens}
    return answer


def error(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", **more}}


Reply = tuple[int, dict[str, str], bytes]
"""Status, headers, body."""


def reply(data: Any, status: int = 200, **headers: str) -> Reply:
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, body


class ChatServer:
    """One on a free port of this machine."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        """The bodies of all requests for a turn."""
        self.keys: set[str | None] = set()
        """All that was sent as authorization."""
        self.most = 0
        """Most requests at a time."""
        self.answer: Callable[[dict[str, Any], int], Reply | None] = lambda body, _: reply(
            completion(halve(body))
        )
        """Of a body and how many were asked before; None cuts the connection."""
        self.models: list[str] | None = MODELS
        self.over = threading.Event()
        self._now = 0
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def chat(self, body: dict[str, Any], key: str | None) -> Reply | None:
        with self._lock:
            count = len(self.asked)
            self.asked.append(body)
            self.keys.add(key)
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            if self.models is not None and body["model"] not in self.models:
                name = body["model"]
                return reply(error(f"The model `{name}` does not exist.", code=404), 404)
            return self.answer(body, count)
        finally:
            with self._lock:
                self._now -= 1


@contextmanager
def chat_server(port: int = 0) -> Iterator[ChatServer]:
    """Run one."""
    server = ChatServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/v1/models" and server.models is not None:
                self._send(reply({"object": "list", "data": [{"id": m} for m in server.models]}))
            else:
                self._send(reply(b"Not Found", 404))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path != "/v1/chat/completions":
                self._send(reply({"detail": "Not Found"}, 404))
                return
            answer = server.chat(json.loads(body), self.headers["Authorization"])
            if answer is None:
                self.close_connection = True
            else:
                self._send(answer)

        def _send(self, answer: Reply) -> None:
            status, headers, body = answer
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Whoever hung up does not want the answer."""

    with Server(("127.0.0.1", port), Handler) as http:
        server.port = http.server_address[1]
        thread = threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            http.shutdown()
            thread.join()
