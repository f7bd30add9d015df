"""Which requests a policy may make: the documented APIs, and nothing that manages the server.

The engine's server also answers requests that load other databases, seed its tokens, or put money
into an account: they are its own, and a policy that finds them is told that there is no such API.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

METHODS = ("get", "post", "put", "patch", "delete")
FIELDS = ("params", "json", "data", "headers")
REFUSED = {"status": 404, "text": json.dumps({"message": "There is no such API."})}
UNSAYABLE = {"status": 422, "text": json.dumps({"message": "This is too long, or is no JSON."})}
LARGEST, MOST = 1 << 16, 1 << 24
"""Bytes of a request, and of all in an episode: the world's process keeps what they write."""


class Routes:
    """The documented APIs, by method."""

    def __init__(self, docs: Path) -> None:
        """Read them from the folder of API documentation that the data come with."""
        self._patterns: dict[str, re.Pattern[str]] = {}
        found: dict[str, set[str]] = {method: set() for method in METHODS}
        for file in sorted(docs.glob("*.json")):
            for doc in json.loads(file.read_text(encoding="utf-8")).values():
                found[doc["method"].lower()].add(_pattern(doc["path"]))
        for method, patterns in found.items():
            self._patterns[method] = re.compile("|".join(sorted(patterns)) or r"(?!)")

    def allow(self, method: Any, url: Any, data: Any) -> bool:
        """Say whether a request is for one of them; it may be anything at all."""
        if not isinstance(method, str) or not isinstance(url, str) or not isinstance(data, dict):
            return False
        path = unquote(url.partition("?")[0]).lstrip("/")
        if method not in METHODS or not set(data) <= set(FIELDS):
            return False
        if "%" in path or "/." in path:  # what is unquoted twice may be another path
            return False
        if not _is_plain(data.get("headers")):
            return False
        return self._patterns[method].fullmatch(path) is not None


def _is_plain(headers: Any) -> bool:
    """Say whether headers are what the engine's own client sends: at most who is logged in."""
    if headers is None:
        return True
    return isinstance(headers, dict) and all(
        name == "Authorization" and isinstance(value, str) for name, value in headers.items()
    )


def size(url: str, data: dict[str, Any]) -> float:
    """Return the bytes of a request; infinitely many, where no JSON in UTF-8 can hold it."""
    try:
        return len(json.dumps([url, data], allow_nan=False, ensure_ascii=False).encode())
    except (ValueError, RecursionError):  # not a number, infinite; half a character
        return float("inf")


def _pattern(path: str) -> str:
    parts = re.split(r"\{[^}]*\}", path.strip("/"))
    return "[^/]+".join(map(re.escape, parts))
