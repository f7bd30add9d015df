"""Compositions: slots and knobs of regularizers, and that a loss is the sum of its parts."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import attrs
import pytest
import torch
from attrs import frozen
from torch import Tensor

from isentrope import (
    Algorithm,
    ConfigError,
    Objective,
    TokenBatch,
    UnknownNameError,
    component,
    knob,
    recipe,
)
from isentrope.config import parse_settings, read_config
from isentrope.learner.learner import Learner
from isentrope_objectives.surrogates import Clipped, EntropyBonus, Reinforce, SequenceClipped
from isentrope_objectives.transforms import RepoD
from tests.sdk.test_aggregation import (
    MODEL,
    NOMINAL,
    TRAJECTORIES,
    assert_same_gradient,
    grads,
    make_learner,
    naive_logp,
)


@frozen(kw_only=True)
class Pull(Objective):
    """A penalty on the distance from the old policy, with a statistic and a diagnostic."""

    weight: float = knob(0.5, low=0.0, high=9.0)
    scale: float | None = None

    def prepare(self, minibatch: TokenBatch) -> Pull:
        return attrs.evolve(self, scale=float(minibatch.old_logp.square().mean()))

    def __call__(self, batch: TokenBatch) -> Tensor:
        assert self.scale is not None
        return self.weight * (batch.logp - batch.old_logp).square() / self.scale

    def diagnostics(self, batch: TokenBatch) -> Mapping[str, Tensor]:
        return {"distance": (batch.logp - batch.old_logp).abs()}


@frozen(kw_only=True)
class Constant(Objective):
    """A loss that nothing depends on."""

    def __call__(self, batch: TokenBatch) -> Tensor:
        return torch.ones_like(batch.old_logp)


def refusal(call: Any, *arguments: Any, **keywords: Any) -> str:
    """Return the one sentence of the `ConfigError` that a call is refused with."""
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def with_regularizers(*regularizers: Objective, **changes: Any) -> Algorithm:
    return attrs.evolve(recipe("grpo"), regularizers=regularizers, **changes)


# ---------------------------------------------------------------- slots and knobs


def test_regularizers_have_slots_between_transforms_and_controllers() -> None:
    controller = component(
        "controller", "entropy-ladder", knob="entropy_bonus_2.coef", low=1, high=2
    )
    algorithm = with_regularizers(
        EntropyBonus(), EntropyBonus(coef=0.5), Pull(), transforms=[RepoD()], controllers=controller
    )
    expected = [
        "advantage",
        "objective",
        "repo_d",
        "entropy_bonus",
        "entropy_bonus_2",
        "pull",
        "entropy_ladder",
    ]
    slots = algorithm.slots()
    assert expected == list(slots)
    assert EntropyBonus(coef=0.5) == slots["entropy_bonus_2"]
    assert (1e-3, 0.5, 0.5) == tuple(
        algorithm.initial_state().knobs[path]
        for path in ("entropy_bonus.coef", "entropy_bonus_2.coef", "pull.weight")
    )


def test_an_objective_and_a_regularizer_of_one_class_are_two_slots() -> None:
    algorithm = with_regularizers(Clipped(eps_low=0.1))
    assert ["advantage", "objective", "clipped"] == list(algorithm.slots())
    assert {
        "objective.eps_low": 0.2,
        "objective.eps_high": 0.2,
        "clipped.eps_low": 0.1,
        "clipped.eps_high": 0.2,
    } == algorithm.initial_state().knobs


def test_a_transform_and_a_regularizer_of_one_class_name_are_numbered_in_that_order() -> None:
    namesake = attrs.make_class("RepoD", [], bases=(Pull,), frozen=True, kw_only=True)
    algorithm = with_regularizers(namesake(weight=2.0), transforms=[RepoD()])
    knobs = algorithm.initial_state().knobs
    assert (1e-3, 2.0) == (knobs["repo_d.zeta"], knobs["repo_d_2.weight"])
    moved = algorithm.at({"repo_d_2.weight": 3.0, "repo_d.zeta": 0.5})
    assert (3.0, 0.5) == (moved.regularizers[0].weight, moved.transforms[0].zeta)


def test_moved_knobs_reach_the_regularizer_that_they_belong_to() -> None:
    algorithm = with_regularizers(
        EntropyBonus(), Pull(), EntropyBonus(), transforms=[RepoD(), RepoD(centred=False)]
    )
    moved = algorithm.at({"entropy_bonus_2.coef": 0.25, "pull.weight": 2.0, "repo_d_2.zeta": 0.5})
    assert (EntropyBonus(), Pull(weight=2.0), EntropyBonus(coef=0.25)) == moved.regularizers
    assert (RepoD(), RepoD(zeta=0.5, centred=False)) == moved.transforms
    assert algorithm.objective == moved.objective


def test_a_ladder_may_hold_a_second_regularizers_knob() -> None:
    ladder = component(
        "controller", "entropy-ladder", knob="entropy_bonus_2.coef", low=1e-3, high=1
    )
    algorithm = with_regularizers(EntropyBonus(), EntropyBonus(), controllers=[ladder])
    (part,) = algorithm.controllers
    assert {"entropy_bonus_2.coef"} == set(part.moves)
    sentence = refusal(with_regularizers, EntropyBonus(), controllers=[ladder])
    assert "'entropy_bonus_2.coef' does not exist. Did you mean 'entropy_bonus.coef'?" in sentence


def test_regularizers_take_overrides_by_slot() -> None:
    assert (EntropyBonus(coef=0.01),) == recipe(
        "grpo-bonus", entropy_bonus={"coef": 0.01}
    ).regularizers
    other = recipe("grpo-bonus", controllers=(), entropy_bonus={"id": "clipped", "eps_low": 0.1})
    assert (Clipped(eps_low=0.1),) == other.regularizers
    assert () == recipe("grpo-bonus", controllers=(), regularizers=()).regularizers
    table = {"recipe": "grpo-bonus", "entropy_bonus": {"coef": 0.5}, "entropy_ladder": {"high": 1}}
    made = read_config({"env": "arithmetic", "algorithm": table}).algorithm
    assert (0.5, 1.0) == (made.regularizers[0].coef, made.controllers[0].high)
    key = "algorithm.entropy_bonus.coef"
    plain = read_config({"env": "arithmetic", "algorithm": "grpo-bonus"})
    for source in (plain, {"env": "arithmetic", "algorithm": "grpo-bonus"}):
        changed = read_config(source, parse_settings([f"{key}=0.01"])).algorithm
        assert (EntropyBonus(coef=0.01),) == changed.regularizers


def test_a_composed_table_takes_edits_of_its_regularizers() -> None:
    table = {
        "advantage": "leave-one-out",
        "objective": "clipped",
        "transforms": "repo-d",
        "regularizers": ["entropy-bonus", "entropy-bonus"],
        "entropy_bonus_2": {"coef": 0.5},
        "repo_d": {"zeta": 0.25},
    }
    made = read_config({"env": "arithmetic", "algorithm": table}).algorithm
    assert (EntropyBonus(), EntropyBonus(coef=0.5)) == made.regularizers
    assert (RepoD(zeta=0.25),) == made.transforms


def test_a_regularizer_that_is_added_takes_edits_at_once() -> None:
    made = recipe("grpo", regularizers=["entropy-bonus"], entropy_bonus={"coef": 0.5})
    assert (EntropyBonus(coef=0.5),) == made.regularizers


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"entropy_bonus": {"coeff": 1}}, "entropy_bonus: Key 'coeff' does not exist."),
        ({"entropy_bonus": {"coef": 11}}, "entropy_bonus: EntropyBonus.coef must be within"),
        ({"entropy_bonus": "repo-r"}, "entropy_bonus: The objective 'repo-r' does not exist."),
        ({"entropy_bonsu": {}}, "Key 'entropy_bonsu' does not exist. Did you mean 'entropy_bonus'"),
        ({"regularizers": "repo-r"}, "regularizers: The objective 'repo-r' does not exist."),
        ({"regularizers": [RepoD()]}, "regularizers"),
        ({"regularizers": ()}, "'entropy_bonus.coef' does not exist"),
    ],
)
def test_a_wrong_change_of_a_regularizer_is_refused(overrides: Any, told: str) -> None:
    assert told in refusal(recipe, "grpo-bonus", **overrides)


def test_what_there_is_is_listed_once() -> None:
    with pytest.raises(UnknownNameError) as caught:
        recipe("grpo", xyz=1)
    assert len(set(caught.value.options)) == len(caught.value.options)


# ---------------------------------------------------------------- what a composition declares


def test_an_on_policy_regularizer_is_held_to_one_step_too() -> None:
    sentence = refusal(with_regularizers, Reinforce())
    assert sentence.startswith("Reinforce is right only for the policy that sampled: use epochs=1")
    made = with_regularizers(Reinforce(), epochs=1, minibatch=None)
    assert (Reinforce(),) == made.regularizers


def test_a_regularizer_with_ratios_makes_the_whole_use_them() -> None:
    on_policy = recipe("rloo")
    assert () == on_policy.with_ratio
    assert () == attrs.evolve(on_policy, regularizers=[EntropyBonus()]).with_ratio
    for ratio in (Clipped(), SequenceClipped(), Pull()):
        assert (ratio,) == attrs.evolve(on_policy, regularizers=[EntropyBonus(), ratio]).with_ratio
    truncated = {"env": "arithmetic", "rollout": {"top_p": 0.9}}
    table = {"recipe": "rloo", "regularizers": ["entropy-bonus"]}
    assert 0.9 == read_config({**truncated, "algorithm": table}).rollout.top_p
    table["regularizers"] = ["clipped"]
    assert "importance ratios" in refusal(read_config, {**truncated, "algorithm": table})


def test_the_part_that_has_the_ratios_is_the_one_that_is_named() -> None:
    table = {"recipe": "rloo", "regularizers": ["clipped"]}
    config = {"env": "arithmetic", "rollout": {"top_p": 0.9}, "algorithm": table}
    assert refusal(read_config, config).startswith("Clipped uses importance ratios")


def test_what_a_regularizer_needs_and_keeps_the_algorithm_does() -> None:
    plain, with_bonus = recipe("grpo"), with_regularizers(Pull(), EntropyBonus())
    assert (frozenset(), False) == (plain.needs, plain.keeps_zero_groups)
    assert (frozenset({"entropy"}), True) == (with_bonus.needs, with_bonus.keeps_zero_groups)
    assert (frozenset(), False) == (
        with_regularizers(Pull()).needs,
        with_regularizers(Pull()).keeps_zero_groups,
    )


def test_one_regularizer_needs_no_list_and_another_kind_is_refused() -> None:
    assert (EntropyBonus(),) == attrs.evolve(
        recipe("grpo"), regularizers=EntropyBonus()
    ).regularizers
    sentence = refusal(with_regularizers, RepoD())
    assert sentence.startswith("Algorithm.regularizers must be of type isentrope.Objective; got")


# ---------------------------------------------------------------- the loss


def gradient_of(algorithm: Algorithm, budget: int = 10**6) -> tuple[float, Tensor]:
    learner: Learner = make_learner(budget)
    report = learner.step(algorithm, TRAJECTORIES, nominal_sequences=NOMINAL, step=1)
    return report.loss, grads(learner.policy)


def entropy_by_hand() -> tuple[float, Tensor]:
    """Return the mean over episodes of their mean entropy, and its gradient, in float64."""
    model = copy.deepcopy(MODEL).double()
    total = torch.zeros((), dtype=torch.float64)
    for t in TRAJECTORIES:
        entropy = torch.cat([naive_logp(model, s)[1] for s in t.episode.segments])
        total = total + entropy.mean() / NOMINAL
    total.backward()
    return total.item(), grads(model)


@pytest.mark.parametrize("coef", [0.3, -0.3, 0.0])
def test_grpos_gradient_with_a_bonus_is_grpos_and_that_of_the_entropy(coef: float) -> None:
    loss, plain = gradient_of(recipe("grpo"))
    entropy, of_entropy = entropy_by_hand()
    with_bonus = recipe("grpo-bonus", entropy_bonus={"coef": coef}, entropy_ladder={"high": 0.5})
    for budget in (1, 40, 10**6):
        found_loss, found = gradient_of(with_bonus, budget)
        assert pytest.approx(loss - coef * entropy, rel=1e-5, abs=1e-6) == found_loss
        assert_same_gradient(found, plain - coef * of_entropy)


def test_an_entropy_bonus_alone_is_an_objective_whose_gradient_is_the_entropys() -> None:
    """No log-prob has a gradient, so no token counts as effective."""
    entropy, of_entropy = entropy_by_hand()
    learner = make_learner()
    algorithm = attrs.evolve(recipe("grpo"), objective=EntropyBonus(coef=0.5))
    report = learner.step(algorithm, TRAJECTORIES, nominal_sequences=NOMINAL, step=1)
    assert pytest.approx(-0.5 * entropy, rel=1e-5) == report.loss
    assert_same_gradient(grads(learner.policy), -0.5 * of_entropy)
    assert 0.0 == report.effective


def test_all_regularizers_are_added_up_each_prepared_and_each_logged() -> None:
    singles = [
        gradient_of(attrs.evolve(recipe("grpo"), objective=part))
        for part in (Clipped(), Pull(), Pull(weight=2.0), EntropyBonus(coef=0.1))
    ]
    algorithm = with_regularizers(Pull(), Pull(weight=2.0), EntropyBonus(coef=0.1))
    for budget in (1, 40, 10**6):
        learner = make_learner(budget)
        report = learner.step(algorithm, TRAJECTORIES, nominal_sequences=NOMINAL, step=1)
        assert pytest.approx(sum(loss for loss, _ in singles), rel=1e-5) == report.loss
        assert_same_gradient(grads(learner.policy), sum(gradient for _, gradient in singles))
        assert {"pull/distance", "pull_2/distance"} <= set(report.diagnostics)
        assert report.diagnostics["pull/distance"] == report.diagnostics["pull_2/distance"] > 0
        assert "objective/clip_high" in report.diagnostics


@pytest.mark.parametrize(
    "algorithm",
    [
        with_regularizers(Constant()),
        with_regularizers(EntropyBonus(), Constant()),
        attrs.evolve(recipe("grpo"), objective=Constant(), regularizers=[EntropyBonus()]),
    ],
)
def test_a_part_without_gradient_is_refused_though_others_have_one(algorithm: Algorithm) -> None:
    learner = make_learner()
    before = [p.detach().clone() for p in learner.policy.parameters()]
    sentence = refusal(learner.step, algorithm, TRAJECTORIES, nominal_sequences=NOMINAL, step=0)
    assert (
        "Constant returned a loss without gradient; it must depend on batch.logp or batch.entropy."
    ) == sentence
    assert all(map(torch.equal, before, learner.policy.parameters()))
