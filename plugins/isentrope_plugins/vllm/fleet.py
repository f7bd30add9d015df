"""The engine: several vLLM servers, one policy."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from collections import Counter, OrderedDict
from collections.abc import Coroutine, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import aiohttp
from attrs import define

from isentrope import (
    Completion,
    ConfigError,
    EngineError,
    EngineUse,
    LanguageModel,
    Sampling,
    WeightsRef,
)
from isentrope_plugins.vllm.adapters import AdapterFiles, Published, check
from isentrope_plugins.vllm.place import Place
from isentrope_plugins.vllm.remote import LostError, Remote, RestartedError, slots
from isentrope_plugins.vllm.server import Server, ServerOptions, share_gpus

if TYPE_CHECKING:
    from isentrope_plugins.vllm.engine import VllmEngine

TRIES = 3
"""Servers that one request may be tried on: one that ends every server must not reach all."""
STARTS = 3
"""How often a server of ours is started, at most."""
PATIENCE = 60.0
"""Seconds to wait for a lost server to come back, where none is left."""
PAUSE = 2.0
"""Seconds between two looks at a lost server."""
COLDEST = 0.01
"""The lowest temperature that vLLM samples at."""
KEPT = 2.0
"""Seconds that an idle connection is kept: less than a server keeps it, which is 5 for vLLM's."""
FILES = 65_536
"""Open files that a run may want: a request in flight is one."""
HOMES = 100_000
"""Conversations whose server is remembered."""
_TEXT = "Two words, 3 digits: 456 é\n"


@define(eq=False)
class Own:
    """A server that the run started."""

    server: Server
    starts: int = 1
    starting: bool = False
    """Whether it is being started again."""

    @property
    def ended(self) -> str | None:
        """What there is to say of it, if it has ended."""
        return None if self.server.alive else self.server.obituary()


class Fleet:
    """Samples on vLLM servers; each completion says which version it came from.

    An adapter is published under a name and a path that were never used before: a server's prefix
    cache is kept by both, and would answer with an older one's states. A request goes on with the
    adapter that it began with, which is unloaded when nothing uses it any more; its files are
    deleted one publication later.
    """

    seeded = False

    def __init__(self, config: VllmEngine, model: LanguageModel, use: EngineUse) -> None:
        self._config, self._model, self._use = config, model, use
        self._dtype = config.dtype or use.dtype
        self._files = AdapterFiles(config.adapters)
        self._current = Published(0, None, None)
        self._older: list[Published] = []
        self._remotes: list[Remote] = []
        self._own: dict[Remote, Own] = {}
        self._homes: OrderedDict[Hashable, Remote] = OrderedDict()
        self._counts: Counter[str] = Counter()
        self._session: aiohttp.ClientSession | None = None
        self._opening: asyncio.Task[None] | None = None
        self._reviving: asyncio.Task[None] | None = None
        self._tidying: set[asyncio.Task[None]] = set()
        self._closed: str | None = None

    # ---------------------------------------------------------------- sampling

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, conversation: Hashable = None
    ) -> Completion:
        """Draw one completion, on the conversation's own server or the least busy one."""
        self._check(prompt, sampling)
        await self._opened()
        reasons: list[str] = []
        for _ in range(TRIES):
            remote = await self._choose(conversation)
            try:
                return await self._complete(remote, prompt, sampling)
            except LostError as error:
                reasons.append(f"{remote.url}: {error}")
                self._counts["requests_retried"] += 1
                await self._doubt(remote, error)
        raise EngineError(f"A request failed {TRIES} times: {'; '.join(reasons)}.")

    async def generate_on_each(
        self, prompt: Sequence[int], sampling: Sampling
    ) -> Sequence[Completion]:
        """Draw one completion on each server that is in use."""
        self._check(prompt, sampling)
        await self._opened()
        asked = self._in_use()
        found = await asyncio.gather(
            *(self._complete(remote, prompt, sampling) for remote in asked), return_exceptions=True
        )
        for remote, result in zip(asked, found, strict=True):
            if isinstance(result, LostError):
                self._lose(remote, str(result))
            elif isinstance(result, BaseException):
                raise result
        drawn = [one for one in found if isinstance(one, Completion)]
        return drawn or [await self.generate(prompt, sampling)]

    async def _complete(
        self, remote: Remote, prompt: Sequence[int], sampling: Sampling
    ) -> Completion:
        assert remote.about is not None
        published = self._current
        name = published.name or remote.about.model
        try:
            drawn = await remote.complete(name, prompt, sampling)
        except EngineError as error:
            if published.name is None or f"`{name}` does not exist" not in str(error):
                raise
            remote.adapters.clear()
            raise RestartedError("it was restarted, and no longer has the policy") from error
        finally:
            self._unload_unused(remote)
        return Completion(drawn.ids, drawn.logp, drawn.finish_reason, published.version)

    def _check(self, prompt: Sequence[int], sampling: Sampling) -> None:
        """Refuse what servers would change without a word."""
        if not prompt:
            raise EngineError("the prompt is empty; sampling needs at least one token id.")
        if sampling.temperature < COLDEST:
            raise ConfigError(
                f"vLLM samples at a temperature of {COLDEST} where less is asked for; got "
                f"{sampling.temperature:g}. For the likeliest token, set top_k = 1."
            )
        needed = len(prompt) + sampling.max_tokens
        if needed > self._use.context:
            raise EngineError(
                f"a prompt of {len(prompt)} tokens and max_tokens {sampling.max_tokens} need "
                f"{needed} positions, but servers have {self._use.context}."
            )

    async def _choose(self, conversation: Hashable) -> Remote:
        """Return the conversation's server, or else the one with the fewest tokens to go."""
        if any(remote.lost for remote in self._remotes):
            self._revive()
        while not (in_use := self._in_use()):
            await self._wait_for_any()
        home = self._homes.get(conversation)
        if home is None or home.lost:
            home = min(in_use, key=lambda remote: remote.outstanding)
        if conversation is not None:
            self._homes[conversation] = home
            self._homes.move_to_end(conversation)
            if len(self._homes) > HOMES:
                self._homes.popitem(last=False)
        return home

    # ---------------------------------------------------------------- publishing

    async def publish(self, weights: WeightsRef) -> None:
        """Have every server load the adapter, under a name of its own."""
        adapter = weights.adapter
        if adapter is None:
            raise EngineError("vLLM servers are sent adapters, not whole weights: train LoRA.")
        check(adapter, self._model, self._use.rank)
        await self._opened()
        await self._delete_outdated()
        if any(remote.lost for remote in self._remotes):
            self._revive()
            assert self._reviving is not None
            await asyncio.wait([self._reviving], timeout=PAUSE)
        published = await self._files.write(weights.version, adapter)
        try:
            while behind := await self._without(published):
                loaded = (self._load(remote, published) for remote in behind)
                for refusal in await asyncio.gather(*loaded, return_exceptions=True):
                    if isinstance(refusal, EngineError):
                        raise refusal
        except EngineError:
            await published.forget()
            raise
        # Nothing is awaited from here on: who gets this version must know that it is the newest.
        self._older.append(self._current)
        self._current = published
        self._counts["publications"] += 1
        for remote in self._in_use():
            self._unload_unused(remote)

    async def _without(self, published: Published) -> list[Remote]:
        """Return servers in use that lack an adapter: some may have come back meanwhile."""
        while not self._in_use():
            await self._wait_for_any()
        return [remote for remote in self._in_use() if published.name not in remote.adapters]

    async def _load(self, remote: Remote, published: Published) -> None:
        """Load an adapter; a server that cannot is given up, for it would sample from an old one.

        Raises `EngineError` where it refuses: the next will, too.
        """
        assert published.name is not None
        try:
            await remote.load(published.name, str(published.path))
        except LostError as error:
            self._lose(remote, str(error))

    def _unload_unused(self, remote: Remote) -> None:
        """Unload older adapters that no request in flight uses."""
        for name in remote.adapters - {self._current.name}:
            older = any(one.name == name for one in self._older)
            if older and not remote.in_flight[name] and not remote.lost:
                remote.adapters.discard(name)
                self._in_background(self._unload(remote, name))

    async def _unload(self, remote: Remote, name: str) -> None:
        try:
            await remote.unload(name)
        except LostError as error:
            await self._doubt(remote, error)
        except EngineError:  # it does not know it: it was restarted
            self._counts["unloads_refused"] += 1

    async def _delete_outdated(self) -> None:
        """Delete files of older adapters that no server has any more."""
        used = {name for remote in self._remotes for name in remote.adapters}
        for published in list(self._older):
            if published.name not in used:
                await published.forget()
                self._older.remove(published)

    # ---------------------------------------------------------------- servers

    async def _opened(self) -> None:
        """Start or ask the servers, once."""
        if self._closed is not None:
            raise EngineError(self._closed)
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        await asyncio.shield(self._opening)

    async def _open(self) -> None:
        # No limit on connections: servers queue better than a client does. None is kept for long:
        # while the learner works, nobody may be there to see that a server has closed it.
        _raise_limit_on_files()
        key = os.environ.get("VLLM_API_KEY")  # which servers of ours have, too
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT),
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )
        urls = self._config.urls
        owned: dict[str, Server] = {}
        if not urls:
            options = await asyncio.to_thread(self._options)
            started = [Server.start(each) for each in options]
            owned = {server.url: server for server in started}
            for server in started:  # which takes half a minute, or ten
                print(f"{server.url} starts; its log: {server.log}", file=sys.stderr, flush=True)
            try:
                await asyncio.gather(*(asyncio.to_thread(s.wait_ready) for s in started))
            except BaseException:
                await asyncio.gather(*(asyncio.to_thread(s.stop) for s in started))
                raise
        for url in urls or owned:
            remote = Remote(url, self._session, self._config.deadline)
            self._remotes.append(remote)
            if url in owned:
                self._own[remote] = Own(owned[url])
        for remote in self._remotes:
            try:
                await self._ask(remote)
            except LostError as error:
                raise EngineError(f"No vLLM server answers at {remote.url}: {error}.") from error

    def _options(self) -> list[ServerOptions]:
        """Return what servers of ours are started with; it blocks where a model must be written."""
        path = self._model.path
        if path is None:
            folder = self._files.folder / "model"
            self._model.save(folder)
            path = str(folder)
        rank = self._use.rank
        servers = self._config.servers
        on_gpus = Place.default().device == "gpu"
        return [
            ServerOptions(
                model=path,
                dtype=self._dtype,
                context=self._use.context,
                max_loras=0 if rank is None else slots(self._use),
                max_lora_rank=rank or 1,
                gpus=gpus,
                flags=self._config.flags + ("--enable-sleep-mode",) * self._config.sleep,
            )
            for gpus in (share_gpus(servers) if on_gpus else [()] * servers)
        ]

    async def _ask(self, remote: Remote) -> None:
        """Have a server say what it is, and refuse what would not do."""
        about = remote.about = await remote.ask()
        # One that was only slow, or cut off, still has what it was sent, and refuses it twice.
        remote.adapters = {name for name in about.adapters if name.startswith(self._files.prefix)}
        about.check(remote.url, self._use, self._dtype)
        if self._config.sleep:  # a run that was killed may have left it asleep
            await remote.post("/wake_up")
        if (tokenizer := self._model.tokenizer) is not None:
            ours = tokenizer.encode(_TEXT, add_special_tokens=False)
            if ours != await remote.tokenize(_TEXT):
                raise ConfigError(
                    f"{remote.url} serves {about.root} with another tokenizer than the run's "
                    "model has: it is another model."
                )

    def _in_use(self) -> list[Remote]:
        return [remote for remote in self._remotes if remote.lost is None]

    async def _doubt(self, remote: Remote, error: LostError) -> None:
        """Give up a server that failed, unless it says that it is well."""
        if error.useless or not await remote.healthy():
            self._lose(remote, str(error))

    def _lose(self, remote: Remote, why: str) -> None:
        if remote.lost is None:
            remote.lost = why
            remote.adapters.clear()
            self._counts["servers_lost"] += 1

    def _revive(self) -> None:
        """Look after lost servers, in the background, until none is lost."""
        if self._reviving is None or self._reviving.done():
            self._reviving = asyncio.create_task(self._look_after())

    async def _look_after(self) -> None:
        while lost := [remote for remote in self._remotes if remote.lost is not None]:
            await asyncio.gather(*(self._try_again(remote) for remote in lost))
            if any(remote.lost for remote in lost):
                await asyncio.sleep(PAUSE)

    async def _try_again(self, remote: Remote) -> None:
        """Take a server back if it is well again; start one of ours anew if it has ended."""
        own = self._own.get(remote)
        try:
            if not await remote.healthy():  # nor alive, if it is ours
                if own is None or not self._may_start(remote, own):
                    return
                own.starts += 1
                own.starting = True
                self._counts["servers_restarted"] += 1
                await asyncio.to_thread(own.server.stop)
                own.server = Server.start(own.server.options)  # a thread would outlive `close`
                remote.url = own.server.url
                await asyncio.to_thread(own.server.wait_ready)
            await self._ask(remote)
            while remote.lost is not None:  # a publication may come in between
                published = self._current
                if published.name is not None and published.name not in remote.adapters:
                    await remote.load(published.name, str(published.path))
                if published is self._current:
                    remote.lost = None
        except (LostError, EngineError, ConfigError) as error:
            remote.lost = str(error)
        finally:
            if own is not None:
                own.starting = False

    async def _wait_for_any(self) -> None:
        """Wait until a server is back.

        Raises `EngineError` where none comes; from then on at once.
        """
        if self._closed is not None:
            raise EngineError(self._closed)
        self._revive()
        end = asyncio.get_running_loop().time() + PATIENCE
        while not self._in_use():
            late = asyncio.get_running_loop().time() > end
            if not any(self._may_come_back(remote, late) for remote in self._remotes):
                self._closed = self._closed or self._nothing_left()
                raise EngineError(self._closed)
            await asyncio.sleep(0.1)

    def _may_come_back(self, remote: Remote, late: bool) -> bool:
        own = self._own.get(remote)
        if own is None:
            return not late
        return own.starting or (not late and (own.server.alive or self._may_start(remote, own)))

    @staticmethod
    def _may_start(remote: Remote, own: Own) -> bool:
        """Whether another start may help: not one that never worked."""
        return own.starts < STARTS and remote.completed > 0

    def _nothing_left(self) -> str:
        reasons = [self._reason(remote) for remote in self._remotes]
        return "No vLLM server is left. " + "\n".join(reasons)

    def _reason(self, remote: Remote) -> str:
        own = self._own.get(remote)
        ended = None if own is None else own.ended
        return ended or f"{remote.url}: {remote.lost}."

    # ---------------------------------------------------------------- the rest

    async def rest(self) -> None:
        """Have servers give their memory to the learner, where they are to."""
        await self._on_each("/sleep?level=1")

    async def wake(self) -> None:
        """Have them take it back."""
        await self._on_each("/wake_up")

    async def _on_each(self, path: str) -> None:
        if not self._config.sleep:
            return
        remotes = self._in_use()
        done = await asyncio.gather(*(r.post(path) for r in remotes), return_exceptions=True)
        for remote, error in zip(remotes, done, strict=True):
            if isinstance(error, LostError):
                self._lose(remote, str(error))
            elif error is not None:
                raise error

    def counts(self) -> Mapping[str, float]:
        """Return what there is to count."""
        names = [
            "publications",
            "requests_retried",
            "servers_lost",
            "servers_restarted",
            "unloads_refused",
        ]
        return {name: self._counts[name] for name in names}

    async def close(self) -> None:
        """Stop servers of ours; have the others forget our adapters; delete what was written."""
        self._closed = "the engine is closed; build another one to go on."
        tasks = [t for t in (self._opening, self._reviving, *self._tidying) if t is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for remote in self._remotes:
            for name in () if remote in self._own else sorted(remote.adapters):
                try:
                    await asyncio.wait_for(remote.unload(name), 5.0)
                except (LostError, EngineError, TimeoutError):
                    break
        await asyncio.gather(*(asyncio.to_thread(own.server.stop) for own in self._own.values()))
        self._own.clear()
        self._remotes.clear()
        if self._session is not None:
            await self._session.close()
        await self._files.delete()

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tidying.add(task)
        task.add_done_callback(self._tidying.discard)


def _raise_limit_on_files() -> None:
    """Let this process have as many connections as it may: shells give 1024 at first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
