"""The engine itself: requests that are pending together are sampled together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import field, frozen

from isentrope import Completion, EngineError, Sampling, WeightsRef
from isentrope_plugins.sampler.wave import sample
from isentrope_plugins.sampler.weights import copy_weights

if TYPE_CHECKING:
    from isentrope_plugins.sampler.decoder import Decoder

_T = TypeVar("_T")


@frozen(eq=False)
class _Request:
    """A prompt that somebody awaits the completion of."""

    prompt: tuple[int, ...]
    sampling: Sampling
    future: asyncio.Future[Completion] = field(repr=False)

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits any more: cancelled, or failed by `close`."""
        return self.future.done()


class BatchingEngine:
    """Samples from a decoder, all pending requests at a time.

    Everything that touches the weights, waves and publications, runs in one thread of the engine's,
    one after another: the event loop stays free for environments, and a wave never sees weights
    change under it. Which requests form a wave is decided by the order of events on the loop and
    by no clock; its completions are delivered together, so that what they lead to meets again.
    """

    samples_together = True

    def __init__(
        self,
        decoder: Decoder[Any],
        *,
        vocabulary: int,
        context: int,
        constants: Set[str],
        max_batch: int,
    ) -> None:
        """Take over `decoder`.

        vocabulary: how many token ids the model can read. context: how many positions it has.
        constants: buffers that follow from the model's config; publications may bring them along.
        max_batch: how many rows are decoded together at most.
        """
        self._decoder = decoder
        self._vocabulary = vocabulary
        self._context = context
        self._constants = constants
        self._max_batch = max_batch
        self._version = 0
        self._waiting: list[_Request] = []
        self._sampling: list[_Request] = []
        self._waves: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="isentrope-sampler")
        self._closed = False

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, conversation: Hashable = None
    ) -> Completion:
        """Draw one completion of `prompt`, together with whatever else is pending."""
        del conversation  # nothing is cached between turns
        self._check_open()
        request = _Request(tuple(prompt), sampling, asyncio.get_running_loop().create_future())
        self._check(request)
        self._waiting.append(request)
        if self._waves is None or self._waves.done():
            self._waves = asyncio.create_task(self._serve())
        return await request.future

    async def publish(self, weights: WeightsRef) -> None:
        """Copy `weights` once the wave in flight has ended."""
        self._check_open()

        def install() -> None:
            varying = {n: t for n, t in weights.tensors.items() if n not in self._constants}
            copy_weights(varying, self._decoder.weights)
            self._version = weights.version

        await self._in_thread(install)

    async def close(self) -> None:
        """Fail what is pending, end the wave in flight within a few tokens, free the thread."""
        self._closed = True
        _fail(
            [*self._waiting, *self._sampling],
            "the engine was closed before it had sampled this completion.",
        )
        self._waiting.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("the engine is closed; build another one to go on.")

    def _check(self, request: _Request) -> None:
        """Refuse what the model cannot read."""
        if not request.prompt:
            raise EngineError("the prompt is empty; sampling needs at least one token id.")
        outside = next((i for i in request.prompt if not 0 <= i < self._vocabulary), None)
        if outside is not None:
            raise EngineError(
                f"token id {outside} is outside the model's vocabulary of {self._vocabulary}; "
                f"ids 0 to {self._vocabulary - 1} were expected."
            )
        needed = len(request.prompt) + request.sampling.max_tokens
        if needed > self._context:
            raise EngineError(
                f"a prompt of {len(request.prompt)} tokens and max_tokens "
                f"{request.sampling.max_tokens} need {needed} positions, but the model has "
                f"{self._context}."
            )

    async def _serve(self) -> None:
        """Sample waves until nothing is waiting."""
        while self._waiting:
            await self._settle()
            self._sampling = [request for request in self._waiting if not request.abandoned]
            self._waiting = []
            try:
                completions = await self._in_thread(lambda: self._sample(self._sampling))
            except asyncio.CancelledError:
                # The loop is going down: nobody is left to wait, and the thread should notice.
                _cancel(self._sampling)
                raise
            except Exception as error:  # whatever a model may raise: those who wait must hear of it
                known = isinstance(error, EngineError)
                why = str(error) if known else f"sampling failed: {type(error).__name__}: {error}"
                _fail(self._sampling, why, cause=error)
            else:
                for request, completion in zip(self._sampling, completions, strict=True):
                    if not request.abandoned:
                        request.future.set_result(completion)
            self._sampling = []

    async def _settle(self) -> None:
        """Let every task that is ready run, until a turn of the loop brings no new request."""
        seen = -1
        while seen != len(self._waiting):
            seen = len(self._waiting)
            await asyncio.sleep(0)

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _sample(self, requests: Sequence[_Request]) -> list[Completion]:
        """Return a completion of each request, at most `max_batch` of them at a time."""
        # Sorted, equal prompts meet in one batch, lengths in one batch are close, and the order in
        # which requests came makes no difference to the arithmetic.
        order = sorted(range(len(requests)), key=lambda i: _sort_key(requests[i]))
        drawn: dict[int, Completion] = {}
        for start in range(0, len(order), self._max_batch):
            batch = order[start : start + self._max_batch]
            completions = sample(self._decoder, [requests[i] for i in batch], self._version)
            drawn.update(zip(batch, completions, strict=True))
        return [drawn[i] for i in range(len(requests))]


def _sort_key(request: _Request) -> tuple[int, tuple[int, ...], int, int]:
    sampling = request.sampling
    return len(request.prompt), request.prompt, sampling.max_tokens, sampling.seed


def _fail(requests: Iterable[_Request], why: str, cause: BaseException | None = None) -> None:
    for request in requests:
        if not request.abandoned:
            # One exception each: raising an exception adds to its traceback.
            error = EngineError(why)
            error.__cause__ = cause
            request.future.set_exception(error)


def _cancel(requests: Iterable[_Request]) -> None:
    for request in requests:
        request.future.cancel()
