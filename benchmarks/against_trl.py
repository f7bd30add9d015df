"""The learner's step against TRL's GRPOTrainer, on the same frozen rollouts of the same model.

    pip install trl  # in an environment of its own, with Isentrope
    python benchmarks/against_trl.py [--rounds 12] [--memory]

256 rollouts, eight of a prompt, with prompts and answers of uneven length (answers log-normal: most
short, a few long), through one optimizer step each: GRPO's clip, the mean of sequences' means,
AdamW, clipped gradient. TRL's generation and scoring are replaced by tensors made beforehand, in
its own padded form, old log-probs included; everything after that is its own `train` loop. Its
micro-batch is the fastest of those tried. Both learn from the same numbers: the first losses are
compared before anything is timed. TRL's step and ours take turns, so that whatever else the machine
does meets both. One thread.

Ours is timed three ways: as it is; with every prompt its own, so that none is shared; and with its
episodes one by one, so that nothing is packed. ``--memory`` measures peak memory instead, each
contestant in a process of its own.
"""

from __future__ import annotations

import argparse
import copy
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from learner import make_model
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from isentrope import Episode, LearnerConfig, Segment, recipe
from isentrope.episodes import StopReason
from isentrope.learner.learner import Learner
from isentrope.learner.packing import Trajectory
from isentrope.learner.policy import Policy

PROMPTS, GROUP, VOCABULARY = 32, 8, 512
LONGEST_PROMPT, LONGEST_ANSWER = 60, 256
BATCHES = (8, 16, 32, 64)
RATE = 1e-6


def make_tiny() -> Qwen3ForCausalLM:
    """Make a tiny Qwen3 with random weights, and the ids that TRL asks for."""
    return make_model(VOCABULARY, pad_token_id=0, eos_token_id=1)


def make_episodes() -> list[Episode]:
    """Make groups of episodes, a prompt and an answer each."""
    rng = np.random.default_rng(0)
    answers = np.exp(rng.normal(3.6, 0.8, (PROMPTS, GROUP))).clip(4, LONGEST_ANSWER).astype(int)
    episodes = []
    for group, lengths in enumerate(answers):
        prompt = rng.integers(2, VOCABULARY, rng.integers(20, LONGEST_PROMPT + 1))
        for rollout, length in enumerate(lengths):
            ids = np.concatenate([prompt, rng.integers(2, VOCABULARY, length)])
            nothing = np.zeros(len(ids))
            segment = Segment(ids, np.arange(len(ids)) >= len(prompt), nothing, nothing, nothing)
            episodes.append(
                Episode(str(group), 0, rollout, (segment,), (), (), False, StopReason.TERMINATED)
            )
    return episodes


def make_trajectories(model: Qwen3ForCausalLM, episodes: list[Episode]) -> list[Trajectory]:
    """Give every episode an advantage, and log-probs that make some ratios clip."""
    learner = ours(model)
    generator = torch.Generator().manual_seed(0)

    def noise(size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    scores = learner.scores(episodes, frozenset())
    drifted = [x._replace(logp=x.logp + 0.1 * noise(x.logp.numel())) for x in scores]
    return [
        Trajectory(episode, int(episode.task), old, noise(1).expand(old.logp.numel()))
        for episode, old in zip(episodes, drifted, strict=True)
    ]


def unshared(trajectories: list[Trajectory]) -> list[Trajectory]:
    """Return the same with a first token of its own in every prompt."""
    import attrs

    found = []
    for i, one in enumerate(trajectories):
        segment = one.episode.segments[0]
        ids = segment.ids.copy()
        ids[:2] = i // 16 + 2, i % 16 + 2
        segments = (attrs.evolve(segment, ids=ids),)
        found.append(attrs.evolve(one, episode=attrs.evolve(one.episode, segments=segments)))
    return found


def ours(model: Qwen3ForCausalLM, budget: int = LearnerConfig().micro_batch_tokens) -> Learner:
    """Return a learner of a copy of the model."""
    config = LearnerConfig(lr=RATE, betas=(0.9, 0.999), micro_batch_tokens=budget)
    return Learner(Policy(copy.deepcopy(model), 1.0, None), config)


def step_of(learner: Learner, trajectories: list[Trajectory]) -> Callable[[], float]:
    """Return what takes our step; returns the loss."""
    algorithm, count = recipe("grpo", minibatch=len(trajectories)), len(trajectories)
    return lambda: learner.step(algorithm, trajectories, nominal_sequences=count, step=1).loss


def padded(trajectories: list[Trajectory]) -> dict[str, Tensor]:
    """Lay rollouts out as TRL does: prompts padded on the left, answers on the right."""
    rows = len(trajectories)
    widths = [int(t.episode.segments[0].sampled.argmax()) for t in trajectories]
    prompt, answer = max(widths), max(len(t) for t in trajectories)
    found = {
        "prompt_ids": torch.zeros(rows, prompt, dtype=torch.int64),
        "prompt_mask": torch.zeros(rows, prompt, dtype=torch.int64),
        "completion_ids": torch.zeros(rows, answer, dtype=torch.int64),
        "completion_mask": torch.zeros(rows, answer, dtype=torch.int64),
        "old_per_token_logps": torch.zeros(rows, answer),
        "advantages": torch.tensor([float(t.advantage[0]) for t in trajectories]),
    }
    for i, (one, width) in enumerate(zip(trajectories, widths, strict=True)):
        ids = torch.from_numpy(one.episode.segments[0].ids)
        found["prompt_ids"][i, prompt - width :] = ids[:width]
        found["prompt_mask"][i, prompt - width :] = 1
        found["completion_ids"][i, : len(one)] = ids[width:]
        found["completion_mask"][i, : len(one)] = 1
        found["old_per_token_logps"][i, : len(one)] = one.old.logp
    found["num_items_in_batch"] = found["completion_mask"].sum()
    return found


def tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer, which TRL wants to have."""
    from tokenizers import Tokenizer, models

    words = {f"t{i}": i for i in range(VOCABULARY)}
    plain = Tokenizer(models.WordLevel(words, unk_token="t2"))
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="t0", eos_token="t1")


def trl(
    model: Qwen3ForCausalLM,
    trajectories: list[Trajectory],
    batch: int,
    steps: int,
    after_step: Callable[[], None] = lambda: None,
) -> tuple[list[float], float]:
    """Run TRL's own loop; return the seconds of each of its steps, and its first loss.

    after_step: called between steps, outside what is timed.
    """
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    seconds: list[float] = []
    losses: list[float] = []

    class Stopwatch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - self.start)
            after_step()

    class Frozen(GRPOTrainer):  # type: ignore[misc]  # untyped
        def _generate_and_score_completions(self, _: Any) -> dict[str, Tensor]:
            return padded(trajectories)

        def training_step(self, *arguments: Any, **options: Any) -> Tensor:
            loss: Tensor = super().training_step(*arguments, **options)
            losses.append(float(loss))
            return loss

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=len(trajectories) // batch,
            num_generations=GROUP,
            max_completion_length=LONGEST_ANSWER,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            max_steps=steps,
            loss_type="grpo",
            beta=0.0,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = Frozen(
            model=copy.deepcopy(model),
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=config,
            train_dataset=Dataset.from_dict({"prompt": ["t3"] * len(trajectories)}),
            processing_class=tokenizer(),
            callbacks=[Stopwatch()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    micro = len(trajectories) // batch
    return seconds, sum(losses[:micro])


def speed(rounds: int) -> None:
    """Time them in turns, and print the ratios."""
    model = make_tiny()
    trajectories = make_trajectories(model, make_episodes())
    steps = {
        "ours": step_of(ours(model), trajectories),
        "ours, no shared prompts": step_of(ours(model), unshared(trajectories)),
        "ours, one by one": step_of(ours(model, budget=1), trajectories),
    }
    own: dict[str, list[float]] = {name: [] for name in steps}

    def take_turns() -> None:
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            own[name].append(time.perf_counter() - start)

    loss = step_of(ours(model), trajectories)()
    quick = {batch: trl(model, trajectories, batch, 3) for batch in BATCHES}
    for batch, (seconds, theirs) in quick.items():
        assert abs(loss - theirs) < 1e-4, f"not the same step: {loss} and {theirs}"
        print(f"TRL, {batch:>3} rows at a time: {median(seconds[1:]) * 1e3:>8.0f} ms")
    fastest = min(quick, key=lambda batch: median(quick[batch][0][1:]))
    seconds, _ = trl(model, trajectories, fastest, rounds + 2, take_turns)
    tokens = sum(len(t.episode.segments[0].ids) for t in trajectories)
    rows = padded(trajectories)
    cells = sum(rows[f"{part}_ids"].numel() for part in ("prompt", "completion"))
    print(f"{len(trajectories)} rollouts, {tokens} tokens, {cells} with TRL's padding")
    print(f"{'':>26} {'median ms':>10} {'TRL / it':>9}")
    print(f"{f'TRL, {fastest} rows':>26} {median(seconds[2:]) * 1e3:>10.0f}")
    for name, times in own.items():
        ratio = median(a / b for a, b in zip(seconds[2:], times[2:], strict=True))
        print(f"{name:>26} {median(times[2:]) * 1e3:>10.0f} {ratio:>9.2f}")


def memory() -> None:
    """Print the peak memory of each, in a process of its own, beyond what is there before."""
    for name in ("ours", *map(str, BATCHES)):
        command = [sys.executable, __file__, "--contestant", name]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        label = name if name == "ours" else f"TRL, {name} rows"
        print(f"{label:>26} {found.stdout.splitlines()[-1]:>8} MiB")


def contestant(name: str) -> None:
    """Take three steps, and print the memory that they took, MiB."""
    model = make_tiny()
    trajectories = make_trajectories(model, make_episodes()[:GROUP])
    trl(model, trajectories, GROUP, 1)  # everything is imported, for all alike
    ours(model, 1).step(recipe("grpo"), trajectories, nominal_sequences=GROUP, step=1)
    trajectories = make_trajectories(model, make_episodes())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if name == "ours":
        step = step_of(ours(model), trajectories)
        for _ in range(3):
            step()
    else:
        trl(model, trajectories, int(name), 3)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description="Time the learner's step against TRL's.")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--memory", action="store_true", help="peak memory, not time")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.contestant:
        contestant(arguments.contestant)
    elif arguments.memory:
        memory()
    else:
        speed(arguments.rounds)


if __name__ == "__main__":
    main()
