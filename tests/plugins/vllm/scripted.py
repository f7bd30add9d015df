"""A server that answers as vLLM's does (recorded from 0.32.0), or misbehaves as told.

It draws the tokens 7, 8, 9, ... at log-prob -1. Real ones are in tests marked slow.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any, Self

from aiohttp import web

MODEL = {"dtype": "torch.float32", "logprobs_mode": "processed_logprobs"}


class Scripted:
    """One such server, on loopback, in a thread of its own."""

    def __init__(self, tokenizer: Any = None, **info: Any) -> None:
        self.tokenizer = tokenizer
        self.model = {**MODEL, **{k: v for k, v in info.items() if k in MODEL}}
        self.lora = {"max_loras": 4, "max_lora_rank": 16, **info.get("lora", {})}
        self.context = info.get("context", 256)
        self.port = 0
        self.adapters: dict[str, str] = {}
        self.asked: list[dict[str, Any]] = []
        """Bodies of completions."""
        self.calls: Counter[str] = Counter()
        self.running = 0
        self.aborted = 0
        self.fault: str | None = None
        """What completions meet: see `_complete`."""
        self.faults = 0
        """How many more do; less than 0: all."""
        self.refuses_adapters = False
        self.seconds = 0.0
        """A completion takes."""
        self.kept = 5.0
        """Seconds that it keeps an idle connection."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def fail(self, fault: str, times: int = -1) -> None:
        self.fault, self.faults = fault, times

    def __enter__(self) -> Self:
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)))
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End at once, with whatever is in flight."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join()

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application()
        app.add_routes(
            [
                web.get("/v1/models", self._models),
                web.get("/server_info", self._info),
                web.get("/health", self._health),
                web.post("/tokenize", self._tokenize),
                web.post("/v1/completions", self._completions),
                web.post("/v1/load_lora_adapter", self._load),
                web.post("/v1/unload_lora_adapter", self._unload),
                web.post("/sleep", self._note),
                web.post("/wake_up", self._note),
            ]
        )
        # As uvicorn does: a request ends when its client has gone.
        runner = web.AppRunner(
            app, handler_cancellation=True, shutdown_timeout=0.0, keepalive_timeout=self.kept
        )
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port)
        await site.start()
        self.port = runner.addresses[0][1]
        ready.set()
        await self._ended.wait()
        await runner.cleanup()

    async def _models(self, _: web.Request) -> web.Response:
        base = {"id": "base", "root": "/models/tiny", "parent": None}
        data: list[dict[str, Any]] = [{**base, "max_model_len": self.context}]
        data += [{"id": name, "parent": "base"} for name in self.adapters]
        return web.json_response({"object": "list", "data": data})

    async def _info(self, _: web.Request) -> web.Response:
        config = {"model_config": self.model, "lora_config": self.lora}
        return web.json_response({"vllm_config": config})

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=503 if self.fault == "dead" else 200)

    async def _tokenize(self, request: web.Request) -> web.Response:
        text = (await request.json())["prompt"]
        return web.json_response({"tokens": self.tokenizer(text)})

    async def _note(self, request: web.Request) -> web.Response:
        self.calls[request.path_qs] += 1
        return web.Response()

    async def _load(self, request: web.Request) -> web.Response:
        body = await request.json()
        name, path = body["lora_name"], Path(body["lora_path"])
        if self.refuses_adapters or not (path / "adapter_model.safetensors").is_file():
            error = {"message": f"Loading lora {name} failed: No adapter found for {path}"}
            return web.json_response({"error": error}, status=404)
        if name in self.adapters:
            error = {"message": f"The lora adapter '{name}' has already been loaded."}
            return web.json_response({"error": error}, status=400)
        assert str(path) not in self.adapters.values()
        self.adapters[name] = str(path)
        self.calls["load"] += 1
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, request: web.Request) -> web.Response:
        name = (await request.json())["lora_name"]
        if self.adapters.pop(name, None) is None:
            return web.json_response({"error": {"message": "not found"}}, status=404)
        self.calls["unload"] += 1
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        self.running += 1
        try:
            return await self._complete(request)
        except asyncio.CancelledError:
            self.aborted += 1
            raise
        finally:
            self.running -= 1

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        fault, self.faults = (self.fault, self.faults - 1) if self.faults else (None, 0)
        if fault == "hang":
            await asyncio.sleep(60)
        if fault == "cut":
            assert request.transport is not None
            request.transport.abort()
        if fault in ("error", "dead"):
            message = "EngineCore encountered an issue."
            return web.json_response({"error": {"message": message}}, status=500)
        if fault == "garbage":
            return web.Response(text="<html>Bad gateway</html>", content_type="application/json")
        await asyncio.sleep(self.seconds)
        name = body["model"]
        if name != "base" and name not in self.adapters:
            error = {"message": f"The model `{name}` does not exist.", "code": 404}
            return web.json_response({"error": error}, status=404)
        n = body["max_tokens"] // 2 if fault == "clip" else body["max_tokens"]
        tokens = [f"token_id:{7 + i}" for i in range(n)]
        logp = [-1.0] * (n - 1 if fault == "short" else n)
        choice = {
            "index": 0,
            "text": "",
            "logprobs": {"tokens": tokens, "token_logprobs": logp},
            "finish_reason": "abort" if fault == "abort" else "length",
        }
        read = len(body["prompt"]) - (fault == "forgets")
        answer = {
            "model": "another" if fault == "model" else name,
            "choices": [choice],
            "usage": {"prompt_tokens": read, "completion_tokens": n},
        }
        return web.Response(text=json.dumps(answer), content_type="application/json")
