"""Demonstrations: whole episodes by an environment's scripted solver, as conversations."""

from __future__ import annotations

import numpy as np

from isentrope import ConfigError, EnvRef, Message, make_apart

MAX_TURNS = 100


def demonstrations(
    env: EnvRef, count: int, per_task: int, noise: float, seed: int
) -> list[list[Message]]:
    """Play `count` episodes of the training split with the environment's noisy solver.

    per_task: fewer are played where that is more than so many for each task.

    Raises `ConfigError` where the environment has none.
    """
    rng = np.random.default_rng(seed)
    world = make_apart(env.id, **env.config)
    split = world.tasks["train"] if "train" in world.tasks else world.tasks[next(iter(world.tasks))]
    played = []
    for _ in range(min(count, per_task * len(split))):
        task = split[int(rng.integers(len(split)))].id
        observation, info = world.reset(seed=int(rng.integers(2**31)), options={"task": task})
        messages: list[Message] = []
        for _turn in range(MAX_TURNS):
            messages += info.get("messages") or [{"role": "user", "content": observation}]
            action = world.demonstrate(rng, noise)
            if action is None:
                raise ConfigError(
                    f"Environment {env.id!r} has no demonstrations to warm up on "
                    "(TextEnv.demonstrate): set model.warmup_env to one that has, or choose "
                    "another model."
                )
            messages.append({"role": "assistant", "content": action})
            observation, _, terminated, truncated, info = world.step(action)
            if terminated or truncated:
                break
        played.append(messages)
    world.close()
    return played
