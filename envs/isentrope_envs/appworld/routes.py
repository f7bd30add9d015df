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
        if method not in METHODS or "/." in path or not set(data) <= set(FIELDS):
            return False
        return self._patterns[method].fullmatch(path) is not None


def _pattern(path: str) -> str:
    parts = re.split(r"\{[^}]*\}", path.strip("/"))
    return "[^/]+".join(map(re.escape, parts))
