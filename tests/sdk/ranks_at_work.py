"""What `test_ranks` has real processes do: each rank steps on the same minibatches, and reports."""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from isentrope import LanguageModel, LearnerConfig, LoraConfig, recipe
from isentrope.learner.learner import Learner
from isentrope.learner.outlines import on_first
from isentrope.learner.packing import Trajectory
from isentrope.learner.policy import Policy
from isentrope.learner.ranks import joined
from tests.sdk.test_aggregation import MODEL, NOMINAL, TEMPERATURE, TRAJECTORIES, make_model

CASES: dict[str, dict[str, Any]] = {
    "whole": {},
    "adapters": {"lora": LoraConfig(r=2, alpha=4.0)},
    "adapters of the head": {"lora": LoraConfig(r=2, alpha=4.0, head=True)},
    "small packs": {"micro_batch_tokens": 30},
    "one pack each": {"micro_batch_tokens": 1},
    "recomputed": {"activation_checkpointing": True, "micro_batch_tokens": 60},
    "bfloat16": {"dtype": "bfloat16"},
    "one episode": {},  # with several ranks, all but one have nothing to do
}
"""What differs from the plain configuration, by name."""
ALGORITHM = recipe("repo-r", on="gspo", repo_r={"zeta": 0.3}, controllers=[])


def minibatch(case: str) -> list[Trajectory]:
    return TRAJECTORIES[:1] if case == "one episode" else TRAJECTORIES


def make_learner(case: str, ranks: Any) -> Learner:
    config = LearnerConfig(lr=1e-3, max_grad_norm=1e9, **CASES[case])
    adapted = config.lora is not None and config.lora.head

    def build() -> LanguageModel:
        assert ranks.first, "the others have its outline"
        torch.manual_seed(0)  # of the adapters
        model = make_model(tied=False) if adapted else copy.deepcopy(MODEL)
        return LanguageModel(model, tokenizer=None)  # type: ignore[arg-type]  # nobody speaks

    model = on_first(build, ranks).model
    assert ranks.first or model.device.type == "meta"
    policy = Policy(model, TEMPERATURE, config.lora, device=torch.device("cpu"))
    return Learner(policy, config, ranks)


def gradients(learner: Learner) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in learner.policy.named_parameters():
        if (grad := parameter.grad) is not None:
            found[name] = grad.full_tensor() if isinstance(grad, DTensor) else grad
    return found


def work(case: str, ranks: Any) -> dict[str, Any]:
    learner = make_learner(case, ranks)
    episodes = [t.episode for t in TRAJECTORIES]
    scores = learner.scores(episodes, frozenset({"entropy"}))
    # Two steps: what one leaves behind must not reach into the next.
    for step in (0, 1):
        report = learner.step(ALGORITHM, minibatch(case), nominal_sequences=NOMINAL, step=step)
    after = learner.scores(episodes, frozenset())
    return {
        "logp_after": torch.cat([s.logp for s in after]),
        "logp": torch.cat([s.logp for s in scores]),
        "start": learner.reference_logps(episodes) if learner.config.lora else [],
        "loss": report.loss,
        "grad_norm": report.grad_norm,
        "tokens": report.tokens,
        "effective": report.effective,
        "diagnostics": report.diagnostics,
        "step_logp": report.logp.sort().values,
        "gradients": gradients(learner),
        "weights": learner.policy.weights(),
    }


def main() -> None:
    torch.set_num_threads(1)
    with joined(sharded=True) as ranks:
        found = {case: work(case, ranks) for case in CASES}
    torch.save(found, Path(sys.argv[1]) / f"{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main()
