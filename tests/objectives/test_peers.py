"""Losses, gradients and advantages, against the numbers that verl and TRL returned.

``benchmarks/peer_oracle.py --write`` asked them and stored their answers in ``peers.json``; it also
holds how to compute ours from the same inputs, here in float64. A data folder adds more of verl's.
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

Json = dict[str, Any]


def load_oracle() -> ModuleType:
    file = Path(__file__).parents[2] / "benchmarks" / "peer_oracle.py"
    spec = importlib.util.spec_from_file_location("peer_oracle", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


oracle = load_oracle()
RECORDED: Json = json.loads((Path(__file__).parent / "peers.json").read_text())

# The names that the data folder uses, and what they are here.
POLICY_LOSSES = {"vanilla": "Clipped", "gspo": "SequenceClipped"}
ESTIMATORS = {
    "grpo_sample_std_eps_1e_6": ("GroupNormalized", {"eps": 1e-6}),
    "rloo": ("LeaveOneOut", {}),
}


def published() -> Json:
    """Return the data folder's cases in the form of ours; none where there is no folder."""
    folder = os.environ.get("ISENTROPE_TEST_DATA")
    if not folder:
        return {"losses": [], "advantages": []}
    cases = json.loads((Path(folder) / "oracle" / "policy_losses.json").read_text())
    return {
        "losses": [with_loss_answers(f"published {i}", c) for i, c in enumerate(cases["losses"])],
        "advantages": [with_advantage_answers(case) for case in cases["advantages"]],
    }


def with_loss_answers(name: str, case: Json) -> Json:
    """Turn ``{"gspo/token-mean": {"loss", "grad"}}`` into answers."""
    mask = case["mask"]
    sizes = {"sequences": len(mask), "tokens": sum(map(sum, mask)), "norm_length": len(mask[0])}
    answers = []
    for key, numbers in case["expected"].items():
        function, aggregation = key.split("/")
        named = {"part": POLICY_LOSSES[function], "peer": "verl", "function": function}
        answers.append({**named, "aggregation": aggregation, **sizes, **numbers})
    return {**case, "name": name, "answers": answers}


def with_advantage_answers(case: Json) -> Json:
    """Turn flat lists, one per estimator, into answers group by group."""
    groups = case["group"]

    def by_group(values: list[float]) -> list[list[float]]:
        pairs = list(zip(groups, values, strict=True))
        return [[x for g, x in pairs if g == name] for name in dict.fromkeys(groups)]

    answers = []
    for name in (key for key in case if key not in ("rewards", "group", "source")):
        part, options = ESTIMATORS[name]
        asked = {"part": part, "options": options, "peer": "verl", "function": name}
        asked |= {"arguments": {}, "precision": "float64"}
        answers.append({**asked, "advantages": by_group(case[name])})
    return {"name": "published", "rewards": by_group(case["rewards"]), "answers": answers}


def answers(kind: str, *sources: Json) -> list[Any]:
    """Return every answer with its case, as parameters."""
    cases = [case for source in sources for case in source[kind]]
    return [
        pytest.param(case, answer, id=name_of(case, answer))
        for case in cases
        for answer in case["answers"]
    ]


def name_of(case: Json, answer: Json) -> str:
    settings = [answer.get("level"), answer.get("aggregation")]
    settings += [f"{key}={value}" for key, value in answer.get("arguments", {}).items()]
    return " ".join([case["name"], answer["peer"], answer["function"], *filter(None, settings)])


def is_close(found: Any, expected: Any, **tolerance: float) -> bool:
    tolerance = tolerance or {"rtol": 1e-10, "atol": 1e-15}
    pair = (torch.tensor(x, dtype=torch.float64) for x in (found, expected))
    return torch.allclose(*pair, **tolerance)


def agrees(case: Json, answer: Json) -> bool:
    loss, grad = oracle.our_loss(case, answer)
    return is_close(loss, answer["loss"]) and is_close(grad, answer["grad"])


def advantages_agree(case: Json, answer: Json) -> bool:
    atol = {"float64": 1e-14, "float32": 1e-6}[answer["precision"]]
    found = oracle.our_advantages(case, answer)
    return is_close(found, answer["advantages"], rtol=1e-10, atol=atol)


@pytest.mark.parametrize(("case", "answer"), answers("losses", RECORDED, published()))
def test_a_loss_and_its_gradient_are_the_peers(case: Json, answer: Json) -> None:
    assert agrees(case, answer)


@pytest.mark.parametrize(("case", "answer"), answers("advantages", RECORDED, published()))
def test_advantages_are_the_peers(case: Json, answer: Json) -> None:
    assert advantages_agree(case, answer)


# That the recorded inputs would show a mistake: each of these must not agree.


@pytest.mark.parametrize(("case", "answer"), answers("losses", RECORDED))
def test_a_bound_elsewhere_would_show(case: Json, answer: Json) -> None:
    low, high = case["eps_low"], case["eps_high"]
    for factor in (0.75, 1.4):
        assert not agrees({**case, "eps_low": factor * low}, answer)
        assert not agrees({**case, "eps_high": factor * high}, answer)
    if low != high:
        assert not agrees({**case, "eps_low": high, "eps_high": low}, answer)


@pytest.mark.parametrize(("case", "answer"), answers("losses", RECORDED))
def test_another_objective_mask_or_aggregation_would_show(case: Json, answer: Json) -> None:
    other = {"Clipped": "SequenceClipped", "SequenceClipped": "Clipped"}[answer["part"]]
    assert not agrees(case, {**answer, "part": other})
    assert not agrees({**case, "mask": [[1] * len(row) for row in case["mask"]]}, answer)
    for aggregation in set(oracle.AGGREGATIONS) - {answer["aggregation"]}:
        assert not agrees(case, {**answer, "aggregation": aggregation}), aggregation


@pytest.mark.parametrize(("case", "answer"), answers("advantages", RECORDED))
def test_another_estimator_would_show(case: Json, answer: Json) -> None:
    own = (answer["part"], answer["options"])
    estimators: list[tuple[str, Json]] = [("LeaveOneOut", {}), ("GroupCentered", {})]
    for correction in (0, 1):
        for eps in (1e-6, 1e-5, 1e-4):
            options = {"eps": eps} if correction else {"eps": eps, "correction": 0}
            estimators.append(("GroupNormalized", options))
    assert own in estimators
    for part, options in estimators:
        if (part, options) != own:
            assert not advantages_agree(case, {**answer, "part": part, "options": options})


# That the recorded answers are those of the script as it is.


def test_the_answers_are_to_the_questions_that_the_script_asks() -> None:
    asked = json.loads(json.dumps(oracle.make_cases()))
    given = ("source", "loss", "grad", "advantages")
    for kind, cases in asked.items():
        for case, recorded in zip(cases, RECORDED[kind], strict=True):
            questions = [{k: a[k] for k in a if k not in given} for a in recorded["answers"]]
            assert case == {**recorded, "answers": questions}


def test_the_answers_are_of_the_releases_that_the_script_pins() -> None:
    pins = dict(pin.split("==") for pin in (*oracle.PINS, *oracle.PINS_ALONE))
    cases = [case for kind in RECORDED.values() for case in kind]
    for answer in (answer for case in cases for answer in case["answers"]):
        peer = answer["peer"]
        assert answer["source"].startswith(f"{peer} {pins[peer]}: {peer}.")
