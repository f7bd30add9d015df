"""What is taken from a finished run: a record of numbers, of which the page is made."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import isentrope
from dynamics.running import fingerprint, folder
from dynamics.studies import SEARCHED, TASK, UNTESTED, Trial
from isentrope import EnvRef, Episode, Evaluation, LanguageModel
from isentrope.config import read_config
from isentrope_envs.arithmetic import CONNECTIVES, EQUATION

Record = dict[str, Any]

BLOCK = 5
"""Iterations that one point of a recorded series averages."""
LAST = 20
"""Iterations that "at the end" averages."""
EARLY = 50
"""Iterations that "early" averages."""
TEMPERATURES = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6)
TRIES = 16
"""Rollouts of each test problem, from which pass@1 .. pass@8 are estimated."""
SEARCH_TRIES = 8
"""Rollouts of each dev problem at each temperature."""
_FORMAT = 1  # raise when what is tested changes, so that no stale result is used
PROTOCOL = json.dumps([TEMPERATURES, TRIES, SEARCH_TRIES, _FORMAT])
"""How policies are measured."""

_SERIES = {
    "entropy": "entropy",
    "reward": "reward",
    "success": "success",
    "right_answer": "env/right_answer",
    "right_derivation": "env/right_derivation",
    "clip_high": "objective/clip_high",
    "clip_low": "objective/clip_low",
}
_CONNECTIVE = re.compile("|".join(re.escape(c) for c in CONNECTIVES))


def course(run: isentrope.Run) -> Record:
    """Sum up how a run went, from its metrics."""
    metrics = run.metrics
    entropy = np.array([m["entropy"] for m in metrics])
    evaluated = {m["iteration"] + 1: m["eval/success"] for m in metrics if "eval/success" in m}
    best = max(evaluated, key=lambda i: evaluated[i])  # the first of equals, as `run.best`
    moved = [path for controller in run.config.algorithm.controllers for path in controller.moves]
    return {
        "series": {
            name: _blocks([m.get(key, 0.0) for m in metrics]) for name, key in _SERIES.items()
        },
        "knobs": {path: _blocks([m[path] for m in metrics]) for path in moved},
        "dev_success": _mean(list(evaluated.values())[-5:]),
        "first_entropy": _short(entropy[0]),
        "cumulative_entropy": _short(entropy.sum()),
        "mean_entropy": _short(entropy.mean()),
        "entropy_change": _short(entropy[-LAST:].mean() / entropy[0] - 1),
        "entropy_change_at_best": _short(_before(entropy, best) / entropy[0] - 1),
        "entropy_error": _short(np.abs(entropy / entropy[0] - 1).mean()),
        "first_success": _mean(m["success"] for m in metrics[:BLOCK]),
        "early_success": _mean(m["success"] for m in metrics[:EARLY]),
        "last_reward": _mean(m["reward"] for m in metrics[-LAST:]),
        "steps": _short(sum(m["steps"] for m in metrics) / len(metrics)),
    }


def _before(entropy: NDArray[np.float64], iterations: int) -> float:
    """Return the mean entropy of the last iterations before a policy was kept."""
    return float(entropy[max(0, iterations - BLOCK) : iterations].mean())


def _blocks(values: Sequence[float]) -> list[float]:
    """Return the means of whole blocks of iterations."""
    whole = len(values) // BLOCK * BLOCK
    return [_short(x) for x in np.reshape(values[:whole], (-1, BLOCK)).mean(1)]


def measure(trial: Trial, out: Path) -> Record:
    """Measure a finished trial; what its policies were tested on is kept beside the run."""
    run = isentrope.Run(folder(trial, out))
    record = course(run)
    if trial.study in UNTESTED:
        return record

    def test() -> Record:
        search = trial.study in SEARCHED
        return {**tested(run.best, run.config.env, search), "final": _test(run.policy, run)}

    return record | _kept(run.path, test)


def _test(policy: Path, run: isentrope.Run) -> Record:
    return dict(tested(policy, run.config.env, search=False)["test"])


def measure_start(seed: int, out: Path) -> Record:
    """Measure the policy that a seed's trials start from."""
    config = read_config(TASK, {"algorithm": "grpo", "model.seed": seed})
    policy = out / f"start/policy/{seed}"

    def test() -> Record:
        config.model.build(config.env).save(policy)
        return tested(policy, config.env, search=True)

    return _kept(policy, test, fingerprint(TASK))


def _kept(path: Path, test: Callable[[], Record], of: str = "") -> Record:
    """Return what a test found: from the file that it was written to, by the present protocol."""
    kept = path / f"tested-{sha256((PROTOCOL + of).encode()).hexdigest()[:8]}.json"
    if not kept.exists():
        found = json.dumps(test())
        draft = kept.with_suffix(".draft")
        draft.write_text(found, encoding="utf-8")
        draft.replace(kept)
    return dict(json.loads(kept.read_text(encoding="utf-8")))


def tested(policy: Path, env: EnvRef, search: bool) -> Record:
    """Evaluate a policy on test problems at temperature 1 and, with `search`, at its best one.

    The best temperature is chosen on dev problems: for pass@1 and for pass@8 each its own.
    """

    def rolled_out(temperature: float, split: str, k: int) -> Evaluation:
        limits = {**TASK["rollout"], "temperature": temperature}
        found = isentrope.evaluate(policy, env, split=split, k=k, rollout=limits)
        assert not found.failed, f"{found.failed} episodes of {policy} failed"
        return found

    plain = rolled_out(1.0, "test", TRIES)
    at = {1.0: _summary(plain)}
    record: Record = {"test": at[1.0]}
    if search:
        dev = {t: rolled_out(t, "dev", SEARCH_TRIES).pass_at for t in TEMPERATURES}
        for k in (1, 8):
            best = max(dev, key=lambda t: dev[t][k])
            if best not in at:
                at[best] = _summary(rolled_out(best, "test", TRIES))
            record[f"best_{k}"] = {"temperature": best, **at[best]}
        record["temperatures"] = {str(k): [_short(p[k]) for p in dev.values()] for k in (1, 8)}
        record["surprisal"] = _surprisal(plain.episodes, policy)
    return record


def _summary(result: Evaluation) -> Record:
    episodes = result.episodes
    return {
        "pass_at": {str(k): _short(result.pass_at[k]) for k in (1, 2, 4, 8, 16)},
        "right_answer": _mean(e.metrics.get("right_answer", 0.0) for e in episodes),
        "right_derivation": _mean(e.metrics.get("right_derivation", 0.0) for e in episodes),
        "distinct_texts": _distinct(episodes, lambda text: text),
        "distinct_derivations": _distinct(episodes, lambda text: tuple(EQUATION.findall(text))),
    }


def _distinct(episodes: Sequence[Episode], form: Any) -> float:
    """Return the mean over problems of how many different right answers the tries held."""
    forms: dict[str, set[object]] = defaultdict(set)
    for episode in episodes:
        forms[episode.task].update(
            [form(episode.messages[-1]["content"])] if episode.success else []
        )
    return _mean(len(found) for found in forms.values())


def _surprisal(episodes: Sequence[Episode], policy: Path) -> Record:
    """Return the nats that an episode has in its wording and in the rest.

    Wording: the tokens that connect one equation to the next, of which six are always right. The
    rest: which equations to write, and with which numbers.
    """
    tokenizer = LanguageModel.load(policy).tokenizer
    wording = [_of_wording(e, tokenizer) for e in episodes]
    total = [-float(s.logp.sum()) for e in episodes for s in e.segments]
    return {
        "wording": _mean(wording),
        "rest": _mean(t - w for t, w in zip(total, wording, strict=True)),
    }


def _of_wording(episode: Episode, tokenizer: Any) -> float:
    (segment,) = episode.segments
    pieces = [tokenizer.decode([i]) for i in segment.ids[segment.sampled]]
    ends = np.cumsum([len(piece) for piece in pieces])
    starts = ends - [len(piece) for piece in pieces]
    found = [m.span() for m in _CONNECTIVE.finditer("".join(pieces))]
    chosen = [
        any(start < stop and end > begin for begin, stop in found)
        for start, end in zip(starts, ends, strict=True)
    ]
    return -float(segment.logp[segment.sampled][np.array(chosen, bool)].sum())


def _mean(values: Iterable[float]) -> float:
    return _short(float(np.mean(list(values))))


def _short(value: float) -> float:
    return float(f"{value:.5g}")
