"""Our losses and advantages against what verl and TRL return for the same tensors.

    python benchmarks/peer_oracle.py [--fresh] [--write]

The first run installs both, pinned, into a virtual environment of its own in the user's cache
folder (1.5 GB, a few minutes); ``--fresh`` makes it anew. In there, the peers' published functions
get seeded float64 tensors on the CPU, and return losses and their gradients with respect to the new
log-probs. Prints the largest absolute differences from ours as a Markdown table, and exits with 1
where one is above its tolerance. ``--write`` stores the peers' answers for the tests, which then
need neither peer.

What runs is the peers' own code, unchanged:

- verl: the registered policy losses "vanilla" and "gspo" under its `ActorConfig`, and the
  registered advantage estimators. Its dual clip is on, at its default of 3, and its own metric must
  say that it acted on no token: we have none.
- TRL: `GRPOTrainer._compute_loss`, and for advantages `_generate_and_score_completions` of its GRPO
  and RLOO trainers. Both are methods; their `self` is a namespace of settings at their defaults,
  whose model gives our log-probs and whose reward function gives our rewards. (TRL's own reward
  functions round to float32, before anything that is compared here.)
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

# TRL and what verl's losses import; the same torch as ours comes on top.
PINS = (
    "trl==1.16.0",
    "ray==2.60.0",
    "tensordict==0.10.0",
    "transformers==5.10.2",  # the newest that verl takes
    "hydra-core==1.3.8",
    "omegaconf==2.3.1",
    "codetiming==1.4.0",
    "torchdata==0.11.0",
    "orjson==3.13.0",
)
PINS_ALONE = ("verl==0.9.1",)  # its requirements are those of a whole cluster
DATA = Path(__file__).parents[1] / "tests" / "objectives" / "peers.json"

TOLERANCES = {"float64": 1e-10, "float32": 1e-6}
"""Absolute; by the precision that the peer computes in where it is given float64."""
AGGREGATIONS = (
    "token-mean",
    "seq-mean-token-mean",
    "seq-mean-token-sum",
    "seq-mean-token-sum-norm",
)
TRL_LOSS_TYPES = {
    "bnpo": "token-mean",
    "dapo": "token-mean",
    "grpo": "seq-mean-token-mean",
    "luspo": "seq-mean-token-sum",
    "dr_grpo": "seq-mean-token-sum-norm",
}
"""TRL names a loss by how it is normalised; these are verl's and our names for the same."""

Json = dict[str, Any]


# What is asked. A case holds inputs and questions; a question names our part (`part`, and its
# `options`) and the peer's function, which answers it.


def make_cases() -> Json:
    """Return every input with its questions: the same ones every time."""
    real = rounded(normal(7, 3, 5), 3)
    binary = [[0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]
    return {
        "losses": [symmetric_case(), asymmetric_case(), sequence_case()],
        "advantages": [
            {"name": name, "rewards": groups, "answers": advantage_questions()}
            for name, groups in (("real rewards", real), ("binary rewards", binary))
        ],
    }


def normal(seed: int, rows: int, length: int) -> Tensor:
    """Return standard normal numbers [rows, length] float64, the same on every platform."""
    rng = random.Random(seed)
    return grid([[rng.gauss() for _ in range(length)] for _ in range(rows)])


def rounded(values: Tensor, digits: int) -> list[Any]:
    """Return nested lists of short numbers."""
    return [[round(x, digits) for x in row] for row in values.tolist()]


def symmetric_case() -> Json:
    """Return the clip of GRPO, on responses of several lengths."""
    lengths = (4, 1, 5, 3, 2, 5)
    case = {
        "name": "symmetric clip",
        "eps_low": 0.2,
        "eps_high": 0.2,
        **log_probs(1, spread=0.35),
        "mask": [[int(t < n) for t in range(5)] for n in lengths],
    }
    return {**case, "answers": loss_questions(case, "Clipped", "vanilla", "token")}


def asymmetric_case() -> Json:
    """Return the clip of DAPO, on a part of a minibatch.

    The environment's tokens lie between the policy's, as in turns; of the eight episodes of the
    minibatch and their 31 tokens, six and 20 are here, and the rest carries no gradient.
    """
    case = {
        "name": "asymmetric clip, part of a minibatch",
        "eps_low": 0.2,
        "eps_high": 0.28,
        **log_probs(2, spread=0.35),
        "mask": [
            [1, 1, 0, 0, 1],
            [1, 0, 1, 0, 0],
            [1, 1, 1, 1, 1],
            [0, 1, 1, 1, 0],
            [1, 1, 1, 1, 1],
            [0, 0, 1, 1, 0],
        ],
    }
    whole = {"sequences": 8, "tokens": 31, "norm_length": 16}
    return {**case, "answers": loss_questions(case, "Clipped", "vanilla", "token", **whole)}


def log_probs(seed: int, *, spread: float) -> Json:
    """Return log-probs of 6 x 5 tokens under two policies, and the advantages."""
    old = -0.5 - normal(seed, 6, 5).abs()
    return {
        "old_logp": rounded(old, 4),
        "new_logp": rounded(old + spread * normal(seed + 100, 6, 5), 4),
        "advantage": [1.3, -0.7, -1.1, 0.6, 0.9, -0.4],
    }


def sequence_case() -> Json:
    """Return the clip of GSPO: mean log-ratios beyond each of the two bounds, and between them."""
    lengths = (4, 2, 3, 4, 1, 3, 2, 4)
    mask = torch.tensor([[float(t < n) for t in range(4)] for n in lengths], dtype=torch.float64)
    mean = torch.tensor([5, 3.5, -2, -5, 5, -3.5, -5, 1], dtype=torch.float64) * 1e-4
    noise = 2e-3 * normal(3, 8, 4)
    noise = noise - ((noise * mask).sum(1) / mask.sum(1)).unsqueeze(1)
    old = -0.5 - normal(4, 8, 4).abs()
    case = {
        "name": "sequence-level clip",
        "eps_low": 3e-4,
        "eps_high": 4e-4,
        "old_logp": rounded(old, 6),
        "new_logp": rounded(old + noise + mean.unsqueeze(1), 6),
        "advantage": [1.3, 0.6, 0.9, 0.2, -0.7, -1.1, -0.4, -0.8],
        "mask": mask.int().tolist(),
    }
    return {**case, "answers": loss_questions(case, "SequenceClipped", "gspo", "sequence")}


def loss_questions(case: Json, part: str, verl: str, trl: str, **whole: int) -> list[Json]:
    """Ask verl's loss of that name and TRL's of that level, under every aggregation.

    whole: what to divide by where a peer can be told of a minibatch larger than the batch. verl can
    for all of them; TRL knows the tokens (dapo) and the length (dr_grpo), never the sequences.
    """
    mask = case["mask"]
    seen = {"sequences": len(mask), "tokens": sum(map(sum, mask)), "norm_length": len(mask[0])}
    whole = {**seen, **whole}
    questions = [
        {"part": part, "peer": "verl", "function": verl, "aggregation": aggregation, **whole}
        for aggregation in AGGREGATIONS
    ]
    for loss_type, aggregation in TRL_LOSS_TYPES.items():
        told = {**whole, "sequences": seen["sequences"]}
        if loss_type == "bnpo":
            told["tokens"] = seen["tokens"]
        asked = {"part": part, "peer": "trl", "function": loss_type, "level": trl}
        questions.append({**asked, "aggregation": aggregation, **told})
    return questions


def advantage_questions() -> list[Json]:
    """Ask for normalised, centred and leave-one-out advantages.

    The arguments are the peer's own, for what it does by default and for Dr. GRPO. Two of them
    round to float32: verl's vectorized means, TRL's Bessel factor (4/3, but not 5/4).
    """
    by_std, mean_only = {"norm_adv_by_std_in_grpo": True}, {"norm_adv_by_std_in_grpo": False}
    verl_eps, trl_eps = {"eps": 1e-6}, {"eps": 1e-4}
    asked = [
        ("GroupNormalized", verl_eps, "verl", "grpo", by_std, "float64"),
        ("GroupNormalized", verl_eps, "verl", "grpo_vectorized", by_std, "float32"),
        ("GroupNormalized", trl_eps, "trl", "grpo", {"scale_rewards": "group"}, "float32"),
        ("GroupCentered", {}, "verl", "grpo", mean_only, "float64"),
        ("GroupCentered", {}, "verl", "grpo_vectorized", mean_only, "float32"),
        ("GroupCentered", {}, "trl", "grpo", {"scale_rewards": "none"}, "float64"),
        ("LeaveOneOut", {}, "verl", "rloo", {}, "float64"),
        ("LeaveOneOut", {}, "verl", "rloo_vectorized", {}, "float64"),
        ("LeaveOneOut", {}, "trl", "rloo", {}, "float64"),
    ]
    names = ("part", "options", "peer", "function", "arguments", "precision")
    return [dict(zip(names, question, strict=True)) for question in asked]


# The peers' answers: this half runs in their environment.


def answer(cases: Json) -> None:
    """Fill in every answer: its source and its numbers."""
    losses = {"verl": verl_loss, "trl": trl_loss}
    for case in cases["losses"]:
        for question in case["answers"]:
            logp = grid(case["new_logp"]).requires_grad_()
            source, loss = losses[question["peer"]](case, question, logp)
            (grad,) = torch.autograd.grad(loss, logp)
            assert loss.dtype == grad.dtype == torch.float64, source
            question |= {"source": source, "loss": loss.item(), "grad": grad.tolist()}
    advantages = {"verl": verl_advantages, "trl": trl_advantages}
    for case in cases["advantages"]:
        rewards = grid(case["rewards"])
        for question in case["answers"]:
            source, values = advantages[question["peer"]](rewards, question)
            question |= {"source": source, "advantages": values.view(rewards.shape).tolist()}


def grid(rows: list[list[float]]) -> Tensor:
    """Return padded rows as a tensor [rows, length] float64."""
    return torch.tensor(rows, dtype=torch.float64)


def source_of(package: str, function: Callable[..., Any]) -> str:
    """Name a function with its release."""
    return f"{package} {version(package)}: {function.__module__}.{function.__qualname__}"


def verl_loss(case: Json, question: Json, logp: Tensor) -> tuple[str, Tensor]:
    """Call a registered policy loss as verl's workers do, who know the whole minibatch."""
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.workers.config import ActorConfig

    function = get_policy_loss_fn(question["function"])
    config = ActorConfig(
        strategy="fsdp",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        clip_ratio_low=case["eps_low"],
        clip_ratio_high=case["eps_high"],
        global_batch_info={
            "dp_size": 1,
            "batch_num_tokens": question["tokens"],
            "global_batch_size": question["sequences"],
            "loss_scale_factor": question["norm_length"],
        },
    )
    loss, metrics = function(
        old_log_prob=grid(case["old_logp"]),
        log_prob=logp,
        advantages=torch.tensor(case["advantage"], dtype=torch.float64)[:, None].expand_as(logp),
        # int64, as its trainer makes it: beside a float64 count the 1e-8 that it adds would show.
        response_mask=torch.tensor(case["mask"]),
        loss_agg_mode=question["aggregation"],
        config=config,
    )
    assert metrics["actor/pg_clipfrac_lower"] == 0, "the dual clip acted"
    return source_of("verl", function), loss


def trl_loss(case: Json, question: Json, logp: Tensor) -> tuple[str, Tensor]:
    """Call the trainer's loss on a completion in which the environment's turns are masked."""
    from trl import GRPOTrainer

    sampled = torch.tensor(case["mask"])
    trainer = trl_trainer(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logp, torch.zeros_like(logp), None),
        importance_sampling_level=question["level"],
        loss_type=question["function"],
        epsilon_low=case["eps_low"],
        epsilon_high=case["eps_high"],
        max_completion_length=question["norm_length"],
    )
    nothing = torch.zeros((len(sampled), 0), dtype=torch.int64)
    inputs = {
        "prompt_ids": nothing,
        "prompt_mask": nothing,
        "completion_ids": torch.zeros_like(sampled),
        "completion_mask": sampled.flip(1).cummax(1).values.flip(1),  # up to the last one sampled
        "tool_mask": sampled,
        "advantages": torch.tensor(case["advantage"], dtype=torch.float64),
        "old_per_token_logps": grid(case["old_logp"]),
        "num_items_in_batch": torch.tensor(question["tokens"]),
    }
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    return source_of("trl", GRPOTrainer._compute_loss), loss


def verl_advantages(rewards: Tensor, question: Json) -> tuple[str, Tensor]:
    """Call a registered estimator with each reward on the last of two tokens."""
    import numpy as np
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn

    function = get_adv_estimator_fn(question["function"])
    groups, size = rewards.shape
    advantages, _ = function(
        token_level_rewards=torch.nn.functional.pad(rewards.view(-1, 1), (1, 0)),
        response_mask=torch.ones(groups * size, 2, dtype=torch.int64),
        index=np.repeat(np.arange(groups), size),
        **question["arguments"],
    )
    return source_of("verl", function), advantages[:, 0]


def trl_advantages(rewards: Tensor, question: Json) -> tuple[str, Tensor]:
    """Call what a trainer does with its completions, all of them one token long."""
    from accelerate import PartialState
    from trl import GRPOTrainer, RLOOTrainer

    PartialState(cpu=True)
    kind = {"grpo": GRPOTrainer, "rloo": RLOOTrainer}[question["function"]]
    count = rewards.numel()
    ids, logps = [[0]] * count, torch.zeros(count, 1, dtype=torch.float64)
    generated = {
        "grpo": (ids, ids, None, ids, None, {}, None, None),
        "rloo": (ids, ids, ids),
    }
    trainer = trl_trainer(
        _generate=lambda _: generated[question["function"]],
        _get_per_token_logps_and_entropies=lambda *_, **__: (logps, None, None),
        _calculate_rewards=lambda *_: rewards.view(-1, 1),
        num_generations=rewards.shape[1],
        **question["arguments"],
    )
    function = kind._generate_and_score_completions
    found = function(trainer, [{"prompt": ""} for _ in range(count)])
    return source_of("trl", function), found["advantages"]


def trl_trainer(**settings: Any) -> SimpleNamespace:
    """Return what the methods called here read of their trainer: one process, TRL's defaults."""
    defaults = {
        "accelerator": SimpleNamespace(
            device=torch.device("cpu"),
            gather=lambda x: x,
            reduce=lambda x, **_: x,
            num_processes=1,
            process_index=0,
        ),
        "args": SimpleNamespace(
            delta=None,
            gradient_accumulation_steps=1,
            gradient_checkpointing_kwargs=None,
            per_device_train_batch_size=1,
            steps_per_generation=1,
        ),
        "model": SimpleNamespace(training=True, is_gradient_checkpointing=False),
        "current_gradient_accumulation_steps": 1,
        "num_iterations": 1,
        "beta": 0.0,
        "use_vllm": False,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "aux_loss_enabled": False,
        "mask_truncated_completions": False,
        "pad_to_multiple_of": None,
        "environment_factories": None,
        "environments": None,
        "tools": None,
        "multi_objective_aggregation": "sum_then_normalize",
        "normalize_advantages": False,
        "reward_clip_range": None,
        "reward_func_names": ["given"],
        "reward_weights": torch.ones(1),
        "_entropy_bonus_enabled": False,
        "_tokenizer": SimpleNamespace(pad_token_id=0),
        "_metrics": {"train": defaultdict(list)},
        "_logs": defaultdict(list, rewards=defaultdict(list)),
        "_pending_extra_logs": {},
        "_pending_metrics": {},
    }
    return SimpleNamespace(**{**defaults, **settings})


# Ours, and the comparison.


def our_loss(case: Json, question: Json) -> tuple[float, list[list[float]]]:
    """Return our loss, and its gradient for every place of the padded rows."""
    from isentrope import Algorithm, TokenBatch
    from isentrope.learner.aggregation import token_weights
    from isentrope_objectives import surrogates
    from isentrope_objectives.advantages import LeaveOneOut

    objective = getattr(surrogates, question["part"])(
        eps_low=case["eps_low"], eps_high=case["eps_high"]
    )
    mask = torch.tensor(case["mask"], dtype=torch.bool)
    row = torch.arange(len(mask)).repeat_interleave(mask.shape[1])
    old_logp = grid(case["old_logp"]).flatten()
    batch = TokenBatch(
        logp=grid(case["new_logp"]).flatten().requires_grad_(),
        old_logp=old_logp,
        engine_logp=old_logp,
        advantage=torch.tensor(case["advantage"], dtype=torch.float64)[row],
        mask=mask.flatten(),
        sequence=row,
        group=torch.zeros_like(row),
        turn=torch.zeros_like(row),
        num_sequences=len(mask),
    )
    normed = question["aggregation"] == "seq-mean-token-sum-norm"
    algorithm = Algorithm(
        advantage=LeaveOneOut(),  # not used: the advantages are given
        objective=objective,
        aggregation=question["aggregation"],
        norm_length=question["norm_length"] if normed else None,
    )
    weights = token_weights(
        algorithm,
        batch,
        nominal_sequences=question["sequences"],
        total_tokens=question["tokens"],
    )
    loss = (weights * objective(batch)).sum()
    (grad,) = torch.autograd.grad(loss, batch.logp)
    return loss.item(), grad.view(mask.shape).tolist()


def our_advantages(case: Json, question: Json) -> list[list[float]]:
    """Return our advantages, group by group."""
    from isentrope_objectives import advantages

    estimator = getattr(advantages, question["part"])(**question["options"])
    return [estimator(rewards, []).tolist() for rewards in grid(case["rewards"])]


class Difference(NamedTuple):
    """How far ours is from one answer of a peer's; absolute, the largest."""

    inputs: str
    peer: str
    function: str
    settings: str
    value: float
    gradient: float | None
    allowed: float

    @property
    def within(self) -> bool:
        """Whether it is allowed; nan never is."""
        return self.value <= self.allowed and (self.gradient or 0.0) <= self.allowed

    def __str__(self) -> str:
        """A row of the table."""
        cells = [self.inputs, self.peer, self.function, self.settings, f"{self.value:.1e}"]
        cells += ["" if self.gradient is None else f"{self.gradient:.1e}", f"{self.allowed:g}"]
        return f"| {' | '.join(cells)} |{'' if self.within else ' **above**'}"


def differences(cases: Json) -> Iterator[Difference]:
    """Compare ours with every answer."""
    for case in cases["losses"]:
        for question in case["answers"]:
            loss, grad = our_loss(case, question)
            yield Difference(
                inputs=case["name"],
                peer=question["peer"],
                function=f"{question['function']} {question.get('level', '')}".strip(),
                settings=question["aggregation"],
                value=abs(loss - question["loss"]),
                gradient=distance(grad, question["grad"]),
                allowed=TOLERANCES["float64"],
            )
    for case in cases["advantages"]:
        for question in case["answers"]:
            yield Difference(
                inputs=case["name"],
                peer=question["peer"],
                function=question["function"],
                settings=", ".join(f"{k}={v}" for k, v in question["arguments"].items()),
                value=distance(our_advantages(case, question), question["advantages"]),
                gradient=None,
                allowed=TOLERANCES[question["precision"]],
            )


def distance(left: list[list[float]], right: list[list[float]]) -> float:
    """Return the largest absolute difference."""
    return float((grid(left) - grid(right)).abs().max())


# Their environment, and the command.


def environment(*, fresh: bool) -> Path:
    """Return the interpreter of the peers' environment, made where it is missing."""
    import platformdirs

    pins = [f"torch=={torch.__version__.partition('+')[0]}", *PINS]
    named = "\n".join([sys.version, *pins, *PINS_ALONE])
    folder = platformdirs.user_cache_path("isentrope-peers")
    folder /= hashlib.sha256(named.encode()).hexdigest()[:12]
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    done = folder / "complete"
    if fresh or not done.exists():
        print(f"Installing verl and TRL in {folder} ...", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, *pins], check=True)
        subprocess.run([*install, "--no-deps", *PINS_ALONE], check=True)
        done.touch()
    return python


def ask(cases: Json, python: Path) -> Json:
    """Return the cases with the peers' answers, from a process in their environment."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cases.json"
        file.write_text(json.dumps(cases))
        alone = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [str(python), "-I", __file__, "--answer", str(file)]
        subprocess.run(command, check=True, env=alone)
        return json.loads(file.read_text())


def dumps(value: Any, indent: int = 0) -> str:
    """Write JSON with one line for each list of numbers, and for each short object."""
    line = json.dumps(value)
    if len(line) + indent <= 100 or is_numbers(value):
        return line
    pad = " " * (indent + 1)
    if isinstance(value, dict):
        items = [f"{json.dumps(k)}: {dumps(v, indent + 1)}" for k, v in value.items()]
        return "{\n" + ",\n".join(pad + item for item in items) + f"\n{' ' * indent}}}"
    items = [dumps(v, indent + 1) for v in value]
    return "[\n" + ",\n".join(pad + item for item in items) + f"\n{' ' * indent}]"


def is_numbers(value: Any) -> bool:
    """Tell a list of numbers from a list of anything else."""
    return isinstance(value, list) and all(isinstance(x, (int, float)) for x in value)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fresh", action="store_true", help="make the environment anew")
    parser.add_argument("--write", action="store_true", help=f"write {DATA.name} for the tests")
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.answer:
        cases = json.loads(options.answer.read_text())
        answer(cases)
        options.answer.write_text(json.dumps(cases))
        return
    cases = ask(make_cases(), environment(fresh=options.fresh))
    found = list(differences(cases))
    print("| inputs | peer | function | settings | loss or advantages | gradient | allowed |")
    print("| --- | --- | --- | --- | ---: | ---: | ---: |")
    print("\n".join(map(str, found)))
    if options.write:
        DATA.write_text(dumps(cases) + "\n")
    sys.exit(not all(difference.within for difference in found))


if __name__ == "__main__":
    main()
