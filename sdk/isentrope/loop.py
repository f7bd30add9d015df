"""Training runs: from a configuration to a run folder, through stops, kills and resumption."""

from __future__ import annotations

import asyncio
import math
import os
import re
import shutil
import signal
import sys
import threading
import time
import tomllib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from isentrope.config import TrainConfig, read_config, to_toml
from isentrope.errors import ConfigError, IsentropeError, PluginError, TrainingError
from isentrope.looping import LoopThread, Runner, off_loop, torch_threads
from isentrope.plugins import registry
from isentrope.runs import Run, check_free, new_folder
from isentrope.structuring import unstructure
from isentrope.tracking import Tracking, check_trackers
from isentrope.workers.nursery import kept_warm

if TYPE_CHECKING:
    from isentrope.episodes import Episode
    from isentrope.learner.checkpoints import Progress
    from isentrope.trainer import Trainer

Listener = Callable[[Mapping[str, Any]], None]


@kept_warm()  # a configuration makes its environment to check it, more than once
def train(
    config: TrainConfig | Mapping[str, Any] | str | Path | None = None,
    *,
    init: str | Path | None = None,
    resume: Run | str | Path | None = None,
    on_iteration: Listener | None = None,
    **overrides: Any,
) -> Run:
    """Train a policy; return its run folder.

    config: a TOML file, a mapping, or a `TrainConfig`. overrides: its keys, with tables merged in:
    ``train(env="arithmetic", algorithm=recipe("repo-r"), rollout={"tasks": 16}, iterations=50)``.
    on_iteration: called with each iteration's metrics, as they are written.

    init: a folder to take the policy from (``run.best``, ``run.policy``), in place of ``model``;
    the optimizer is fresh, and so is the entropy to hold, unless ``initial_entropy`` says
    otherwise.

    resume: a run to go on with, in place of `config`, exactly as if it had never stopped; of its
    configuration only ``iterations`` and ``trackers`` may be changed.

    Ctrl-C, or SIGTERM, stops at the iteration's end with everything saved; a second Ctrl-C stops at
    once, and loses what came after the last checkpoint.

    Under ``torchrun`` all ranks call this with the same arguments, and hold the policy together.
    ``learner.micro_batch_tokens`` is then each rank's own; the gradient is that of one process.

    Raises `ConfigError` before anything is loaded where the composition cannot work, and
    `TrainingError` where the run cannot go on; what was written stays.
    """
    listener = on_iteration or (lambda _: None)
    if init is not None:
        overrides["model"] = {"id": "pretrained", "path": str(init)}
    if resume is not None:
        run = resume if isinstance(resume, Run) else Run(Path(resume))
        resumed = resumed_config(run, config, overrides)
        check_trackers(resumed.trackers)
        text = _as_text(attrs.evolve(resumed, out=None))
        return off_loop(lambda: _train(resumed, text, lambda: run, listener, new=False))
    resolved = read_config(config, overrides)
    check_trackers(resolved.trackers)
    name = Path(config).stem if isinstance(config, (str, Path)) else _name(resolved)
    folder = resolved.out or new_folder(name)
    check_free(folder)
    origin = registry().origin("environment", resolved.env.id)
    text = _as_text(attrs.evolve(resolved, out=None))  # so that the file can start another run

    def create() -> Run:
        return Run.create(folder, text, origin)

    return off_loop(lambda: _train(resolved, text, create, listener, new=True))


def _train(
    config: TrainConfig,
    text: str,
    open_run: Callable[[], Run],
    on_iteration: Listener,
    *,
    new: bool,
) -> Run:
    from isentrope.learner.ranks import joined
    from isentrope.trainer import Trainer

    with (
        torch_threads(config.threads),
        _interruptible() as interrupted,  # round all: torchrun's SIGTERM lets a sentence be said
        joined(sharded=config.learner.shards(1)) as ranks,
        LoopThread() if config.rollout.staleness else asyncio.Runner() as runner,
    ):
        trainer = Trainer.build(config, ranks)
        try:
            # After what may fail, so that a failure leaves no folder behind.
            run = ranks.by_first(open_run)
            with ExitStack() as held:
                ranks.by_first(lambda: held.enter_context(run.locked()))
                # A resumed run may have more iterations to go.
                ranks.by_first(lambda: run.rewrite_config(text))
                try:
                    _iterate(trainer, run, runner, on_iteration, interrupted)
                except IsentropeError:
                    if new and ranks.first:
                        _forget_if_empty(run)
                    raise
        finally:
            trainer.close(runner)
    return run


def _forget_if_empty(run: Run) -> None:
    """Delete the folder of a run that failed before anything was recorded or saved."""
    if not run.metrics and not list(run.checkpoints.glob("*")):
        shutil.rmtree(run.path)


def _iterate(
    trainer: Trainer,
    run: Run,
    runner: Runner,
    on_iteration: Listener,
    interrupted: Callable[[], bool],
) -> None:
    """Go on from the newest checkpoint, if there is one, until the run ends or is interrupted.

    What only the first rank does, it does in `by_first`: the others learn of it if it fails.
    """
    from isentrope.learner.checkpoints import CheckpointFolder

    config, progress, ranks = trainer.config, trainer.progress, trainer.ranks
    tracking = Tracking(run.path, config, config.trackers if ranks.first else ())
    with tracking, CheckpointFolder(run.checkpoints, ranks) as checkpoints:
        damaged = checkpoints.load(trainer.learner, progress)
        ranks.by_first(lambda: _prepare(run, config, progress, damaged))
        trainer.publish(runner)
        if not _ended(config, progress):
            trainer.rehearse()
            tracking.start(progress.iteration)
        saved = progress.iteration
        held_up = 0.0  # by the checkpoint before: it is written after its iteration's metrics
        stopping = any(ranks.gather(interrupted()))  # while the model was warmed up, say
        while not (_ended(config, progress) or stopping):
            metrics, episodes, tokens = trainer.iterate(runner)
            metrics["seconds/checkpoint"], held_up = held_up, 0.0
            metrics["stopped"] = _nothing_to_learn(config, progress)
            evaluated = _evaluate(config, trainer, run, runner, metrics)
            metrics |= tracking.metrics()
            with _writing(run, progress.iteration):
                ranks.by_first(lambda: run.record(metrics, episodes, tokens, evaluated))  # noqa: B023  # now
                tracking.log(metrics)  # before the checkpoint: what is not told is run again
                if progress.iteration % config.checkpoint_every == 0:
                    begun = time.perf_counter()
                    checkpoints.save(trainer.learner, progress)
                    saved, held_up = progress.iteration, time.perf_counter() - begun
            ranks.by_first(lambda: _tell(on_iteration, metrics))  # noqa: B023  # now
            stopping = any(ranks.gather(interrupted()))
        with _writing(run, progress.iteration):
            if saved != progress.iteration:  # ended or interrupted, whenever the signal came
                checkpoints.save(trainer.learner, progress)
            checkpoints.finish()
            _put(trainer, run, run.policy)


def _prepare(run: Run, config: TrainConfig, progress: Progress, damaged: Sequence[str]) -> None:
    """Bring a run's folder to where its checkpoint is, and say what was damaged."""
    for sentence in damaged:
        warnings.warn(sentence, stacklevel=3)
    recorded, every = len(run.metrics), config.checkpoint_every
    if progress.iteration == 0 and recorded > 2 * every:  # by then one was whole, or the run ended
        raise TrainingError(
            f"{run.checkpoints} has no checkpoint, though {recorded} iterations are recorded: "
            "without one, all of them would be lost. Put it back, or begin another run."
        )
    if lost := recorded - progress.iteration:
        last = "iteration is" if lost == 1 else f"{lost} iterations are"
        warnings.warn(f"The last recorded {last} run again.", stacklevel=3)
    run.rewind(progress.iteration)
    if not _ended(config, progress):
        shutil.rmtree(run.policy, ignore_errors=True)  # of an earlier end, now outdated


def _tell(listener: Listener, metrics: Mapping[str, Any]) -> None:
    listener(metrics)  # whose result is nobody's business, and may not cross to other ranks


def _put(trainer: Trainer, run: Run, folder: Path) -> None:
    """Write the policy to a folder of the run."""
    write = trainer.export()
    trainer.ranks.by_first(lambda: run.put(folder, write))


def _as_text(config: TrainConfig) -> str:
    """Write the configuration, and make sure that it says the same when it is read."""
    try:
        text = to_toml(config)
    except TypeError as error:
        raise ConfigError(f"The configuration cannot be written as TOML: {error}.") from error
    own = list(dict.fromkeys(re.findall(r'"(__main__:[^"]+|[^":]+:[^"]*<locals>[^"]*)"', text)))
    if own:
        warnings.warn(
            "This run cannot be resumed from its folder: only this process can find what a script, "
            f"a notebook or a function defines ({', '.join(own)}). Put it into a module.",
            stacklevel=4,
        )
    try:
        same = unstructure(read_config(tomllib.loads(text))) == unstructure(config)
    except PluginError as error:
        if not own:
            warnings.warn(f"This run cannot be resumed from its folder: {error}", stacklevel=4)
        return text
    if not same:
        raise ConfigError(
            "The configuration does not survive being written as TOML, which has no None and no "
            "tuples: leave out options that are None, and give lists for tuples, in env and in "
            "components."
        )
    return text


def _evaluate(
    config: TrainConfig, trainer: Trainer, run: Run, runner: Runner, metrics: dict[str, Any]
) -> list[Episode]:
    """Evaluate when it is time to, and keep the policy if it is the best so far.

    Adds what it came to to the iteration's metrics; returns its episodes.
    """
    progress = trainer.progress
    if config.evaluation is None or progress.iteration % config.evaluation.every:
        return []
    found, episodes, counts = trainer.evaluate(config.evaluation, runner)
    metrics |= found | {name: metrics.get(name, 0) + count for name, count in counts.items()}
    score = metrics["eval/success"]  # NaN: every episode failed, or no success is ever said
    if math.isfinite(score) and (progress.best is None or score > progress.best):
        progress.best = score
        with _writing(run, progress.iteration):
            _put(trainer, run, run.path / "best")
    return episodes


def resumed_config(
    run: Run,
    config: object,
    overrides: Mapping[str, Any],
    kind: type[TrainConfig] = TrainConfig,
) -> TrainConfig:
    """Return the configuration of a run to go on with; raise `ConfigError` where it cannot."""
    if config is not None or overrides.keys() - {"iterations", "trackers"}:
        given = ", ".join(sorted(overrides)) or "a config"
        raise ConfigError(
            f"Resuming {run.path} goes on with the same run, of which only `iterations` and "
            f"`trackers` may be changed; got {given}. To begin another run from its policy, leave "
            'out `resume` and set model = {id = "pretrained", path = ".../policy"}.'
        )
    resumed = read_config(run.path / "config.toml", overrides, kind)
    if resumed.iterations < (done := len(run.metrics)):
        raise ConfigError(
            f"{run.path} has {done} iterations already; got iterations = {resumed.iterations}."
        )
    return resumed


def _name(config: TrainConfig) -> str:
    """Name a run that came from no file by its environment and what it learns with."""
    algorithm = config.algorithm
    parts = [type(part).__name__ for part in (algorithm.objective, *algorithm.transforms)]
    env = config.env.id.rpartition(":")[2]
    return "-".join([env, *([algorithm.recipe] if algorithm.recipe else parts)]).lower()


@contextmanager
def _writing(run: Run, iteration: int) -> Iterator[None]:
    """Turn a full or vanished disk into a sentence; what was written before is whole."""
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"Run folder {run.path} cannot be written ({error.strerror or error}) after "
            f"{iteration} iterations. What was written before is whole: make room, then go on "
            f"with `isentrope train --resume {run.path}`."
        ) from error


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C, and a cluster's SIGTERM, only ask to stop; yields whether one did."""
    asked = threading.Event()
    first = os.environ.get("RANK", "0") == "0"

    def ask(signum: int, frame: object) -> None:
        del frame
        if asked.is_set() and signum == signal.SIGINT:
            raise KeyboardInterrupt
        if first and not asked.is_set():
            message = "Stopping at the end of this iteration, or before the first"
            if signum == signal.SIGINT and "TORCHELASTIC_RUN_ID" not in os.environ:
                message += "; Ctrl-C again stops at once"
            print(f"{message}.", file=sys.stderr, flush=True)
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set  # signals go to the main thread, and handlers are set there only
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ended(config: TrainConfig, progress: Progress) -> bool:
    idle = _nothing_to_learn(config, progress) is not None
    return idle or progress.iteration >= config.iterations


def _nothing_to_learn(config: TrainConfig, progress: Progress) -> str | None:
    if progress.idle < config.stop_after_idle:
        return None
    return (
        f"No step was taken for {progress.idle} iterations in a row: there was nothing to learn. "
        "Either every group's rewards were equal (groups_zero; the task is too easy or too hard "
        "for this policy), or no gradient was finite (steps_skipped)."
    )
