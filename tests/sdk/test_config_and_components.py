"""Configs and components: what round-trips, what is refused, and how an error names its place."""

from __future__ import annotations

import math
import pickle
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
from attrs import field, frozen
from hypothesis import given, settings
from hypothesis import strategies as st

import isentrope
from isentrope import (
    AdvantageTransform,
    Algorithm,
    ConfigError,
    Controller,
    EnvRef,
    Knob,
    LearnerConfig,
    LoraConfig,
    PluginError,
    RolloutConfig,
    Statistics,
    TokenBatch,
    TrainConfig,
    UnknownNameError,
    component,
    knob,
    recipe,
)
from isentrope.components import id_of
from isentrope.config import parse_settings, read_config, to_toml
from isentrope.plugins import registry
from isentrope.structuring import structure, unstructure

BASE = {"env": "arithmetic", "algorithm": "grpo"}
PARTS = {"advantage": "leave-one-out", "objective": "clipped"}
HERE = __name__


@frozen(kw_only=True)
class Tilt(AdvantageTransform):
    """A transform that no plugin brings."""

    strength: float = knob(0.5, low=0.0, high=1.0)

    def __call__(self, batch: TokenBatch) -> Any:
        return batch.advantage * self.strength


@frozen(kw_only=True)
class Mover(Controller):
    """Says that it moves `knob` within `range`, and moves `moved` to `to`."""

    knob: str
    moved: str = ""
    to: float = 0.0
    range: tuple[float, float] = (0.0, 1.0)

    @property
    def moves(self) -> Mapping[str, Knob]:
        return {self.knob: Knob(*self.range)}

    def update(
        self, statistics: Statistics, knobs: Mapping[str, float], memory: dict[str, Any]
    ) -> Mapping[str, float]:
        memory["calls"] = memory.get("calls", 0) + 1
        return {self.moved or self.knob: self.to}


@frozen(kw_only=True)
class OtherMover(Mover):
    """The same under another name."""


@frozen(kw_only=True)
class Fields(Tilt):
    """Fields of more types than our own parts have."""

    weights: dict[str, float] = field(factory=dict)
    sizes: list[int] = field(factory=list)
    either: int | str = 1
    precision: complex = 0j


class NoAttrs(AdvantageTransform):
    def __call__(self, batch: TokenBatch) -> Any:
        return batch.advantage


def config(changes: Mapping[str, Any] | None = None, **overrides: Any) -> TrainConfig:
    return read_config({**BASE, **(changes or {})}, overrides)


def refusal(call: Any, *arguments: Any, **keywords: Any) -> str:
    """Return the one sentence of the error that a call is refused with."""
    with pytest.raises(isentrope.IsentropeError) as caught:
        call(*arguments, **keywords)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert "Attribute(" not in sentence
    assert sentence[-1] in ".?"
    return sentence


def at(place: str, value: Any) -> dict[str, Any]:
    """Return ``{a: {b: value}}`` for ``"a.b"``."""
    for key in reversed(place.split(".")):
        value = {key: value}
    return value


# ---------------------------------------------------------------- there and back

numbers = st.floats(min_value=1e-9, max_value=0.9, allow_nan=False)
counts = st.integers(min_value=2, max_value=10**6)
rollouts = st.builds(
    RolloutConfig,
    split=st.sampled_from(["train", "dev", "test"]),
    tasks=counts,
    group=counts,
    temperature=numbers,
    max_tokens=counts,
    max_turns=counts,
    context=st.none() | counts,
    max_failure_rate=numbers,
)
learners = st.builds(
    LearnerConfig,
    lr=numbers,
    weight_decay=numbers,
    betas=st.tuples(numbers, numbers),
    max_grad_norm=numbers,
    lora=st.none() | st.builds(LoraConfig, r=counts, alpha=numbers),
    micro_batch_tokens=counts,
)


def algorithms() -> st.SearchStrategy[Algorithm]:
    return st.builds(
        lambda name, low, epochs, minibatch: recipe(
            name, epochs=epochs, minibatch=minibatch, objective={"eps_low": low}
        ),
        st.sampled_from(["grpo", "repo-r"]),
        numbers,
        counts,
        st.none() | counts,
    )


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@settings(max_examples=60, deadline=None)
@given(
    rollout=rollouts,
    learner=learners,
    algorithm=algorithms(),
    seed=counts,
    out=st.none() | st.builds(Path, texts.filter(lambda t: "\0" not in t)),
)
def test_a_config_reads_back_equal_from_toml(**parts: Any) -> None:
    made = TrainConfig(env=EnvRef("arithmetic"), **parts)
    assert made == read_config(tomllib.loads(to_toml(made)))


@settings(max_examples=60, deadline=None)
@given(algorithm=algorithms())
def test_an_algorithm_structures_back_from_what_it_unstructures_to(algorithm: Algorithm) -> None:
    assert algorithm == structure(unstructure(algorithm), Algorithm)


@settings(max_examples=100, deadline=None)
@given(
    values=st.dictionaries(
        st.from_regex(r"[a-z]{1,5}(\.[a-z]{1,5}){0,2}", fullmatch=True),
        st.integers(-(2**60), 2**60) | st.booleans() | st.floats(allow_nan=False) | texts,
    )
)
def test_settings_parse_back_to_the_values_that_were_written(values: dict[str, Any]) -> None:
    import tomli_w

    written = [
        tomli_w.dumps({"v": value}).replace("v = ", f"{key}=", 1) for key, value in values.items()
    ]
    assert values == parse_settings(written)


def test_a_toml_file_gives_the_config_that_the_same_mapping_gives(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('env = "arithmetic"\nalgorithm = "grpo"\n[rollout]\ntasks = 5\n')
    assert config({"rollout": {"tasks": 5}}) == read_config(path)
    assert config({"rollout": {"tasks": 5}}) == read_config(str(path))


def test_a_config_read_again_is_itself() -> None:
    made = config()
    assert made == read_config(made)


def test_an_environments_options_and_a_components_fields_survive_toml() -> None:
    made = config(
        {
            "env": {"id": "arithmetic", "grading": "derivation"},
            "algorithm": {**PARTS, "transforms": [f"{HERE}:Tilt"]},
            "learner": {"lora": {"r": 4}},
        }
    )
    back = read_config(tomllib.loads(to_toml(made)))
    assert made == back
    assert EnvRef("arithmetic", {"grading": "derivation"}) == back.env
    assert (Tilt(),) == back.algorithm.transforms


@pytest.mark.parametrize("name", ["rloo", "grpo", "repo-r"])
def test_every_recipe_survives_toml(name: str) -> None:
    made = config({"algorithm": name})
    assert made == read_config(tomllib.loads(to_toml(made)))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (row.kind, row.id)
        for row in registry().rows
        if row.kind in {"advantage", "transform", "objective", "controller", "engine", "model"}
    ],
)
def test_a_field_that_may_be_none_has_none_as_its_default(kind: str, name: str) -> None:
    """TOML has no null: a None is left out, so it must be what is read back."""
    cls = registry().find(kind, name).load()
    hidden = [
        a.name
        for a in attrs.fields(cls)
        if "None" in str(a.type) and a.default not in (None, attrs.NOTHING)
    ]
    assert [] == hidden


def test_the_data_of_a_config_holds_only_plain_values() -> None:
    data = unstructure(config({"algorithm": "repo-r", "learner": {"lora": {}}}))

    def plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(isinstance(k, str) and plain(v) for k, v in value.items())
        if isinstance(value, (list, tuple)):
            return all(map(plain, value))
        return value is None or type(value) in (bool, int, float, str)

    assert plain(data)


def test_a_component_is_written_by_its_id_and_read_back_by_it() -> None:
    clipped = component("objective", "clipped", eps_high=0.28)
    assert {"id": "clipped", "eps_low": 0.2, "eps_high": 0.28} == unstructure(clipped)
    assert "clipped" == id_of(clipped)


def test_a_component_that_no_plugin_brings_goes_by_its_import_path() -> None:
    assert f"{HERE}:Tilt" == id_of(Tilt())
    made = config(at("algorithm", {**PARTS, "transforms": {"id": f"{HERE}:Tilt", "strength": 1}}))
    assert (Tilt(strength=1.0),) == made.algorithm.transforms


def test_a_bare_id_is_a_component_with_its_defaults() -> None:
    algorithm = structure({**PARTS, "transforms": "repo-r"}, Algorithm)
    assert component("transform", "repo-r") == algorithm.transforms[0]


# ---------------------------------------------------------------- overrides


def test_dotted_and_nested_overrides_are_the_same() -> None:
    expected = RolloutConfig(tasks=7, group=4)
    base = {**BASE, "rollout": {"group": 4}}
    assert expected == read_config(base, {"rollout.tasks": 7}).rollout
    assert expected == read_config(base, {"rollout": {"tasks": 7}}).rollout


def test_a_dotted_override_makes_the_tables_that_it_goes_through() -> None:
    assert LoraConfig(r=7) == config(**{"learner.lora.r": 7}).learner.lora


def test_an_override_of_an_environments_option_keeps_its_id() -> None:
    expected = EnvRef("arithmetic", {"grading": "derivation"})
    assert expected == config(**{"env.grading": "derivation"}).env


def test_an_override_leaves_the_source_as_it_was() -> None:
    source = {**BASE, "rollout": {"tasks": 3}}
    read_config(source, {"rollout.tasks": 7, "rollout.group": 3})
    assert {**BASE, "rollout": {"tasks": 3}} == source


def test_a_finished_config_takes_overrides_too() -> None:
    made = config()
    assert 5 == read_config(made, {"algorithm.epochs": 5}).algorithm.epochs
    changed = read_config(made, {"algorithm.objective.eps_high": 0.5}).algorithm
    assert component("objective", "clipped", eps_high=0.5) == changed.objective
    assert recipe("rloo") == read_config(made, {"algorithm": "rloo"}).algorithm


@pytest.mark.parametrize(
    ("key", "value"), [("algorithm.epochs", 5), ("algorithm.objective.eps_high", 0.5)]
)
def test_a_dotted_override_reaches_into_a_recipe_named_by_a_string(key: str, value: Any) -> None:
    changed = config(**{key: value}).algorithm
    expected = recipe("grpo", **at(key.removeprefix("algorithm."), value))
    assert expected == changed


def test_overrides_reach_a_recipes_slots_by_name() -> None:
    table = {"recipe": "repo-r", "repo_r": {"zeta": 0.02}, "entropy_ladder": {"high": 0.5}}
    algorithm = config({"algorithm": table}).algorithm
    assert 0.02 == algorithm.initial_state().knobs["repo_r.zeta"]
    assert 0.5 == algorithm.controllers[0].high


def test_a_slot_of_a_finished_config_can_be_overridden() -> None:
    made = config({"algorithm": "repo-r"})
    changed = read_config(made, {"algorithm.repo_r.zeta": 0.02}).algorithm
    assert 0.02 == changed.initial_state().knobs["repo_r.zeta"]


def test_a_recipe_override_of_a_finished_config_is_that_recipe() -> None:
    assert recipe("rloo") == read_config(config(), {"algorithm.recipe": "rloo"}).algorithm
    changed = read_config(config(), {"algorithm": {"recipe": "repo-r", "epochs": 3}}).algorithm
    assert recipe("repo-r", epochs=3) == changed


def test_an_option_of_the_default_model_can_be_set_without_naming_it() -> None:
    made = config(**{"model.hidden_size": 16})
    assert component("model", "tiny-qwen3", hidden_size=16) == made.model


def test_a_recipe_takes_a_whole_component_for_a_field() -> None:
    clipped = component("objective", "clipped", eps_low=0.1)
    assert clipped == recipe("grpo", objective=clipped).objective
    table = {"id": "clipped", "eps_low": 0.1}
    assert clipped == recipe("grpo", objective=table).objective


@pytest.mark.parametrize(
    "written",
    [
        {"id": "repo-r", "zeta": 0.01},
        component("transform", "repo-r", zeta=0.01),
        {"zeta": 0.01},
    ],
)
def test_a_recipe_takes_another_component_for_a_slot(written: Any) -> None:
    expected = (component("transform", "repo-r", zeta=0.01),)
    assert expected == recipe("repo-r", repo_r=written).transforms
    table = {"recipe": "repo-r", "repo_r": written}
    assert expected == config({"algorithm": table}).algorithm.transforms


def test_a_component_of_another_class_may_take_a_slot() -> None:
    changed = recipe("repo-r", controllers=(), repo_r={"id": f"{HERE}:Tilt", "strength": 0.25})
    assert (Tilt(strength=0.25),) == changed.transforms
    kept = recipe("repo-r", controllers=(), repo_r=Tilt())
    assert (Tilt(),) == kept.transforms


def test_a_component_of_another_kind_may_not_take_a_slot() -> None:
    sentence = refusal(recipe, "repo-r", repo_r="clipped")
    assert sentence.startswith("repo_r: The transform 'clipped' does not exist.")


def test_a_composed_table_takes_edits_of_its_own_slots() -> None:
    table = {**PARTS, "transforms": ["repo-r", f"{HERE}:Tilt", f"{HERE}:Tilt"]}
    edits = {"repo_r": {"zeta": 0.02}, "tilt_2": {"strength": 0.25}}
    made = config({"algorithm": {**table, **edits}}).algorithm
    expected = (component("transform", "repo-r", zeta=0.02), Tilt(), Tilt(strength=0.25))
    assert expected == made.transforms


def test_a_slot_is_looked_up_in_what_the_other_changes_make() -> None:
    made = recipe(
        "repo-r",
        transforms=["repo-d"],
        repo_d={"zeta": 0.01},
        entropy_ladder={"knob": "repo_d.zeta"},
    )
    assert (component("transform", "repo-d", zeta=0.01),) == made.transforms
    assert ["repo_d.zeta"] == [c.knob for c in made.controllers]
    assert "Key 'repo_r' does not exist. Did you mean 'repo_d'?" == refusal(
        recipe, "repo-r", transforms=["repo-d"], controllers=[], repo_r={"zeta": 0.02}
    )


def test_a_finished_configs_knobs_and_controllers_take_overrides() -> None:
    made = config({"algorithm": "repo-r"})
    changed = read_config(
        made,
        {
            "algorithm.objective.eps_high": 0.5,
            "algorithm.repo_r.zeta": 0.02,
            "algorithm.entropy_ladder.high": 0.5,
        },
    ).algorithm
    expected = recipe(
        "repo-r",
        objective={"eps_high": 0.5},
        repo_r={"zeta": 0.02},
        entropy_ladder={"high": 0.5},
    )
    assert expected == changed


def test_a_finished_config_takes_a_finished_algorithm() -> None:
    algorithm = recipe("repo-r", repo_r={"zeta": 0.02})
    assert algorithm == read_config(config(), {"algorithm": algorithm}).algorithm


def test_a_finished_configs_controllers_can_be_taken_away() -> None:
    changed = read_config(config({"algorithm": "repo-r"}), {"algorithm.controllers": []}).algorithm
    assert recipe("repo-r", controllers=()) == changed


# ---------------------------------------------------------------- --set


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-1e-4", -1e-4),
        ("true", True),
        ('"1"', "1"),
        ("[1, 2]", [1, 2]),
        ("{r = 4}", {"r": 4}),
        ("repo-r", "repo-r"),
        ("True", "True"),
        ("a=b", "a=b"),
        ("runs/x y", "runs/x y"),
        ("", ""),
    ],
)
def test_a_setting_is_toml_or_else_a_plain_string(text: str, value: Any) -> None:
    assert {"a.b": value} == parse_settings([f"a.b={text}"])


def test_the_last_of_two_settings_counts() -> None:
    assert {"a": 2} == parse_settings(["a=1", "a=2"])


@pytest.mark.parametrize("text", ["rollout.tasks", "=3", " =3", ""])
def test_a_setting_without_key_or_value_is_refused(text: str) -> None:
    expected = f"--set expects key=value, on one line; got {text!r}."
    assert expected == refusal(parse_settings, [text])


@pytest.mark.parametrize("text", ["a=1\nb = 2", "a=1\r\nb = 2", "a=1\n\n[b]", "a\n=1"])
def test_a_setting_of_two_lines_is_refused(text: str) -> None:
    """TOML would read the second line as another key, and nobody would see it go."""
    expected = f"--set expects key=value, on one line; got {text!r}."
    assert expected == refusal(parse_settings, [text])


def test_a_setting_may_end_with_a_newline_as_a_shells_does() -> None:
    assert {"a": 1} == parse_settings(["a=1\n"])


# ---------------------------------------------------------------- unknown keys


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"iteration": 3}, "Key 'iteration' does not exist. Did you mean 'iterations'?"),
        (
            {"rollout": {"groups": 3}},
            "rollout: Key 'groups' does not exist. Did you mean 'group'?",
        ),
        (
            {"learner": {"lora": {"alhpa": 3}}},
            "learner.lora: Key 'alhpa' does not exist. Did you mean 'alpha'?",
        ),
        (
            {"learner": {"lora": {"rank": 3}}},
            "learner.lora: Key 'rank' does not exist. Known: alpha, head, r.",
        ),
        (
            {"model": {"id": "tiny-qwen3", "hidden": 3}},
            "model: Key 'hidden' does not exist. Did you mean 'hidden_size'?",
        ),
        (
            {"algorithm": {**PARTS, "epoch": 3}},
            "algorithm: Key 'epoch' does not exist. Did you mean 'epochs'?",
        ),
        (
            {"algorithm": {**PARTS, "objective": {"id": "clipped", "eps": 3}}},
            "algorithm.objective: Key 'eps' does not exist. Did you mean 'eps_low'?",
        ),
        (
            {"algorithm": {"recipe": "grpo", "epoch": 2}},
            "algorithm: Key 'epoch' does not exist. Did you mean 'epochs'?",
        ),
        (
            {"algorithm": {"recipe": "repo-r", "repor": {"zeta": 2}}},
            "algorithm: Key 'repor' does not exist. Did you mean 'repo_r'?",
        ),
        (
            {"algorithm": {"recipe": "repo-r", "repo_r": {"zet": 2}}},
            "algorithm.repo_r: Key 'zet' does not exist. Did you mean 'zeta'?",
        ),
    ],
)
def test_an_unknown_key_is_refused_with_its_place_and_the_nearest_one(
    changes: dict[str, Any], sentence: str
) -> None:
    assert sentence == refusal(config, changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"env": "aritmetic"},
            "env: The environment 'aritmetic' does not exist. Did you mean 'arithmetic'?",
        ),
        (
            {"algorithm": "grop"},
            "algorithm: The recipe 'grop' does not exist. Did you mean 'grpo'?",
        ),
        (
            {"algorithm": {**PARTS, "objective": "cliped"}},
            "algorithm.objective: The objective 'cliped' does not exist. Did you mean 'clipped'?",
        ),
        (
            {"algorithm": {**PARTS, "advantage": "leave-one-ot"}},
            "algorithm.advantage: The advantage 'leave-one-ot' does not exist. "
            "Did you mean 'leave-one-out'?",
        ),
        (
            {"model": "tiny-qwen"},
            "model: The model 'tiny-qwen' does not exist. Did you mean 'tiny-qwen3'?",
        ),
        (
            {"engine": "transformer"},
            "engine: The engine 'transformer' does not exist. Did you mean 'transformers'?",
        ),
        (
            {"algorithm": {**PARTS, "aggregation": "token_mean"}},
            "algorithm.aggregation: Value 'token_mean' does not exist. Did you mean 'token-mean'?",
        ),
    ],
)
def test_an_unknown_id_is_refused_with_its_place_and_the_nearest_one(
    changes: dict[str, Any], sentence: str
) -> None:
    assert sentence == refusal(config, changes)


def test_an_unknown_key_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('env = "arithmetic"\nalgorithm = "grpo"\n[rollout]\ngroups = 5\n')
    expected = f"{path}, rollout: Key 'groups' does not exist. Did you mean 'group'?"
    assert expected == refusal(read_config, path)


def test_a_plugins_error_in_a_file_names_the_file_too(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('env = "arithmetic"\nalgorithm = "grpo"\nmodel = "no_such_module:Model"\n')
    assert refusal(read_config, path).startswith(f"{path}, model: The model 'no_such_module:Model'")


def test_an_error_comes_whole_out_of_another_process() -> None:
    with pytest.raises(isentrope.UnknownNameError) as caught:
        read_config({"env": "arithmetic", "algorithm": "grpo", "rollout": {"grup": 4}})
    revived = pickle.loads(pickle.dumps(caught.value))
    assert type(caught.value) is type(revived)
    assert (str(caught.value), caught.value.options) == (str(revived), revived.options)


def test_an_errors_place_is_data_too() -> None:
    for changes, place in (
        ({"iteration": 3}, ""),
        ({"learner": {"lora": {"rank": 3}}}, "learner.lora"),
        ({"env": {"id": "arithmetic", "gradin": "answer"}}, "env"),
        ({"algorithm": {"recipe": "repo-r", "repo_r": {"zeta": "x"}}}, "algorithm.repo_r.zeta"),
        ({"algorithm": {**PARTS, "objective": f"{HERE}:NoAttrs"}}, "algorithm.objective"),
    ):
        with pytest.raises(isentrope.IsentropeError) as caught:
            config(changes)
        assert place == caught.value.place


def test_an_unknown_key_in_an_override_is_refused_like_any_other() -> None:
    expected = "Key 'rolout' does not exist. Did you mean 'rollout'?"
    assert expected == refusal(config, **{"rolout.tasks": 7})


def test_an_unknown_name_carries_its_data_wherever_it_stands() -> None:
    for changes in ({"iteration": 3}, {"rollout": {"iteration": 3}}):
        with pytest.raises(UnknownNameError) as caught:
            config(changes)
        assert "iteration" == caught.value.name
        assert isinstance(caught.value, KeyError)
        assert str(caught.value)[-1] in ".?", "not quoted, as a KeyError's is"


def test_an_unknown_option_of_the_environment_says_so_under_env() -> None:
    sentence = refusal(config, {"env": {"id": "arithmetic", "gradin": "answer"}})
    assert sentence.startswith("env: ")
    assert sentence.endswith("'gradin' does not exist. Did you mean 'grading'?")


def test_an_unknown_split_says_so_under_rollout_split() -> None:
    sentence = refusal(config, {"rollout": {"split": "trian"}})
    assert sentence.startswith("rollout.split: ")
    assert sentence.endswith("'trian' does not exist. Did you mean 'train'?")


def test_an_unknown_option_of_an_environment_is_refused_by_make() -> None:
    expected = "Option of environment 'arithmetic': 'gradin' does not exist. "
    sentence = refusal(isentrope.make, "arithmetic", gradin="answer")
    assert f"{expected}Did you mean 'grading'?" == sentence


# ---------------------------------------------------------------- what is missing


def test_a_config_without_an_environment_lists_the_environments() -> None:
    sentence = refusal(read_config, {"algorithm": "grpo"})
    assert sentence.startswith("env is missing: choose one of ")
    assert "arithmetic" in sentence


def test_a_config_without_an_algorithm_lists_the_recipes() -> None:
    sentence = refusal(read_config, {"env": "arithmetic"})
    assert sentence.startswith("algorithm is missing: choose one of ")
    assert "grpo" in sentence


def test_a_misspelt_env_key_is_named_not_only_missed() -> None:
    sentence = refusal(read_config, {"enviroment": "arithmetic", "algorithm": "grpo"})
    assert "'enviroment'" in sentence


@pytest.mark.parametrize("missing", ["advantage", "objective"])
def test_a_composition_without_a_part_says_which(missing: str) -> None:
    table = {key: value for key, value in PARTS.items() if key != missing}
    sentence = refusal(config, {"algorithm": table})
    assert f"algorithm: {missing} is missing, and has no default." == sentence


def test_a_controller_without_its_knob_says_so() -> None:
    sentence = refusal(config, {"algorithm": {**PARTS, "controllers": "entropy-ladder"}})
    assert sentence.startswith("algorithm.controllers")
    assert "knob is missing" in sentence


def test_a_file_that_is_not_there_is_named() -> None:
    expected = "Config file nowhere.toml cannot be read: No such file or directory."
    assert expected == refusal(read_config, "nowhere.toml")


def test_a_file_that_is_not_there_is_told_which_one_is_like_it(tmp_path: Path) -> None:
    (tmp_path / "grpo.toml").touch()
    wrong = tmp_path / "gpro.toml"
    assert refusal(read_config, wrong).endswith(f" Did you mean '{tmp_path / 'grpo.toml'}'?")


def test_a_file_that_is_no_toml_is_named_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("env = arithmetic\n")
    sentence = refusal(read_config, path)
    assert sentence.startswith(f"Config file {path} is not valid TOML: ")
    assert "line 1" in sentence


# ---------------------------------------------------------------- wrong values

WHOLE = ["rollout.tasks", "rollout.group", "rollout.max_tokens", "iterations", "seed"]
REAL = ["rollout.temperature", "rollout.top_p", "learner.lr", "learner.max_grad_norm"]


@pytest.mark.parametrize("place", WHOLE)
@pytest.mark.parametrize("value", [3.5, 3.0, "3", True, None, math.nan, math.inf, [3]])
def test_what_is_no_whole_number_is_refused_where_one_must_be(place: str, value: Any) -> None:
    sentence = refusal(config, at(place, value))
    assert f"{place}: must be a whole number, not {value!r}." == sentence


@pytest.mark.parametrize("place", REAL)
@pytest.mark.parametrize("value", ["3", True, None, [3]])
def test_what_is_no_number_is_refused_where_one_must_be(place: str, value: Any) -> None:
    sentence = refusal(config, at(place, value))
    assert f"{place}: must be a number, not {value!r}." == sentence


@pytest.mark.parametrize("place", REAL)
def test_nan_is_refused(place: str) -> None:
    assert f"{place}: must be a number, not NaN." == refusal(config, at(place, math.nan))


@pytest.mark.parametrize(
    "place", [*REAL, "learner.weight_decay", "learner.lora.alpha", "rollout.max_failure_rate"]
)
def test_infinity_is_refused(place: str) -> None:
    sentence = refusal(config, at(place, math.inf))
    assert "inf" in sentence
    assert place.rpartition(".")[2] in sentence


@pytest.mark.parametrize("place", ["rollout.split", "out"])
@pytest.mark.parametrize("value", [3, True, None, ["train"]])
def test_what_is_no_string_is_refused_where_one_must_be(place: str, value: Any) -> None:
    if (place, value) == ("out", None):
        assert config({"out": None}).out is None
        return
    assert refusal(config, at(place, value)).startswith(f"{place}: must be a string, not ")


@pytest.mark.parametrize(
    ("place", "value", "bounds"),
    [
        ("rollout.tasks", 0, "1"),
        ("rollout.tasks", -3, "1"),
        ("rollout.max_tokens", 0, "1"),
        ("rollout.max_turns", -1, "1"),
        ("rollout.context", 0, "1"),
        ("rollout.temperature", 0.0, "0"),
        ("rollout.temperature", -1.0, "0"),
        ("rollout.top_p", 0.0, "0 1"),
        ("rollout.top_p", 1.5, "0 1"),
        ("rollout.top_k", -1, "0"),
        ("rollout.max_failure_rate", 1.5, "0 1"),
        ("learner.lr", 0.0, "0 1"),
        ("learner.lr", -1e-3, "0 1"),
        ("learner.lr", 3.0, "0 1"),
        ("learner.weight_decay", -0.1, "0"),
        ("learner.max_grad_norm", 0.0, "0"),
        ("learner.micro_batch_tokens", 0, "1"),
        ("learner.lora.r", 0, "1"),
        ("learner.lora.alpha", -1.0, "0"),
        ("iterations", 0, "1"),
        ("seed", -1, "0"),
        ("threads", 0, "1"),
        ("stop_after_idle", 0, "1"),
    ],
)
def test_a_value_out_of_range_is_refused_with_place_value_and_bounds(
    place: str, value: float, bounds: str
) -> None:
    sentence = refusal(config, at(place, value))
    table, _, name = place.rpartition(".")
    assert sentence.startswith(table)
    assert name in sentence
    numbers = [float(text) for text in re.findall(r"-?\d+(?:\.\d+)?", sentence)]
    assert sorted([*map(float, bounds.split()), float(value)]) == sorted(numbers)


@pytest.mark.parametrize("group", [1, 0, -2])
def test_a_group_of_one_is_refused_with_the_reason(group: int) -> None:
    assert (
        "rollout: RolloutConfig.group must be a whole number, at least 2 (an advantage compares "
        "rollouts of the same task, and one has nothing to be compared with); "
        f"got {group}." == refusal(config, {"rollout": {"group": group}})
    )


@pytest.mark.parametrize("betas", [[0.9], [0.9, 0.9, 0.9], [0.9, 1.0], [-0.1, 0.9], ["a", 0.9]])
def test_betas_must_be_two_numbers_below_one(betas: list[Any]) -> None:
    sentence = refusal(config, {"learner": {"betas": betas}})
    assert sentence.startswith("learner")
    assert "betas" in sentence


@pytest.mark.parametrize("betas", [0.9, (0.9,), ("a", 0.9), (math.nan, 0.9), None])
def test_betas_are_checked_in_python_too(betas: Any) -> None:
    expected = f"LearnerConfig.betas must be two numbers in [0, 1); got {betas!r}."
    assert expected == refusal(LearnerConfig, betas=betas)


def test_betas_that_are_one_number_are_refused() -> None:
    assert refusal(config, {"learner": {"betas": 0.9}}).startswith("learner.betas: ")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"weights": 3}, "weights: must be a table, not 3."),
        ({"weights": {"a": "b"}}, "weights: must be a number, not 'b'."),
        ({"sizes": [1, "b"]}, "sizes: must be a whole number, not 'b'."),
        ({"either": []}, "either: A field of type int | str cannot be read from a config."),
        (
            {"precision": "1j"},
            "precision: A field of type <class 'complex'> cannot be read from a config.",
        ),
    ],
)
def test_a_plugins_field_of_any_type_is_refused_with_its_place(
    fields: dict[str, Any], sentence: str
) -> None:
    assert sentence == refusal(structure, {"id": f"{HERE}:Fields", **fields}, AdvantageTransform)


def test_a_plugins_field_of_any_type_takes_what_it_is() -> None:
    fields = {"weights": {"a": 0.5}, "sizes": [1, 2], "precision": 1j}
    made = structure({"id": f"{HERE}:Fields", **fields}, AdvantageTransform)
    assert Fields(**fields) == made


@pytest.mark.parametrize("place", ["rollout", "learner", "learner.lora"])
@pytest.mark.parametrize("value", [3, True, "x", [1]])
def test_what_is_no_table_is_refused_with_the_keys_of_one(place: str, value: Any) -> None:
    sentence = refusal(config, at(place, value))
    assert sentence.startswith(f"{place}: must be a table with keys ")


@pytest.mark.parametrize(
    ("place", "kind", "value"),
    [
        *(("env", "environment", value) for value in (3, None, [], {"grading": "answer"})),
        *(("model", "model", value) for value in (3, None, [], {"id": 3})),
        *(("engine", "engine", value) for value in (3, None, [], {"id": None})),
        *(("algorithm.objective", "objective", v) for v in (3, None, [], {"eps_low": 0.1})),
    ],
)
def test_what_names_no_component_is_refused(place: str, kind: str, value: Any) -> None:
    changes = {"algorithm": {**PARTS, "objective": value}} if "." in place else {place: value}
    expected = f"{place}: must name the {kind}: an id, or a table with one; got {value!r}."
    assert expected == refusal(config, changes)


@pytest.mark.parametrize("place", ["model", "engine"])
def test_a_table_without_an_id_is_the_default_components(place: str) -> None:
    sentence = refusal(config, {place: {"eps_low": 0.1}})
    assert sentence.startswith(f"{place}: Key 'eps_low' does not exist.")


@pytest.mark.parametrize("place", ["seed", "rollout.tasks"])
def test_an_override_that_goes_through_a_number_is_refused_with_its_place(place: str) -> None:
    sentence = refusal(read_config, {**BASE, **at(place, 1)}, {f"{place}.x": 7})
    assert f"{place}: must be a table to have keys that can be set; it is 1." == sentence


@pytest.mark.parametrize("value", [True, 1.5, "2"])
def test_a_value_of_the_wrong_type_is_refused_in_python_too(value: Any) -> None:
    with pytest.raises(ConfigError, match="tasks"):
        RolloutConfig(tasks=value)


def test_a_value_out_of_range_is_a_config_error_in_python_too() -> None:
    with pytest.raises(ConfigError, match="tasks"):
        RolloutConfig(tasks=0)


# ---------------------------------------------------------------- components by name or path


@pytest.mark.parametrize("kind", ["objektive", "environment", "recipe"])
def test_a_kind_that_component_cannot_make_is_refused(kind: Any) -> None:
    assert kind in refusal(component, kind, "grpo")


def test_a_component_of_another_kind_is_refused() -> None:
    sentence = refusal(config, {"algorithm": {**PARTS, "transforms": ["entropy-ladder"]}})
    expected = "algorithm.transforms: The transform 'entropy-ladder' does not exist. "
    assert sentence.startswith(expected)


def test_an_import_path_of_another_kind_is_refused() -> None:
    path = f"{HERE}:Mover"
    with pytest.raises(PluginError, match=r"is no isentrope\.Objective|no attrs|missing") as caught:
        structure({"id": path, "knob": "x"}, isentrope.Objective)
    assert path in str(caught.value)


def test_a_class_without_attrs_is_a_component_without_options() -> None:
    assert "NoAttrs" == type(structure(f"{HERE}:NoAttrs", AdvantageTransform)).__name__
    sentence = refusal(structure, {"id": f"{HERE}:NoAttrs", "size": 1}, AdvantageTransform)
    assert f"The transform '{HERE}:NoAttrs' is no attrs class, so it has no config." == sentence


@pytest.mark.parametrize("path", ["no_such_module:Clipped", f"{HERE}:NoSuchClass"])
def test_an_import_path_that_leads_nowhere_is_refused_with_its_place(path: str) -> None:
    sentence = refusal(config, {"algorithm": {**PARTS, "objective": path}})
    assert "algorithm.objective" in sentence
    assert path in sentence


def test_a_component_of_the_wrong_kind_is_refused_with_its_place() -> None:
    path = "isentrope_objectives.advantages:LeaveOneOut"
    sentence = refusal(config, {"algorithm": {**PARTS, "objective": path}})
    assert sentence.startswith("algorithm.objective: ")


# ---------------------------------------------------------------- compositions


@pytest.mark.parametrize(("key", "value"), [("top_p", 0.9), ("top_k", 5)])
def test_truncated_sampling_is_refused_to_an_objective_with_ratios(key: str, value: Any) -> None:
    sentence = refusal(config, {"rollout": {key: value}})
    assert "Clipped uses importance ratios" in sentence
    assert f"{key}={value:g}" in sentence
    assert "use top_p=1 and top_k=0" in sentence


def test_truncated_sampling_is_allowed_to_an_objective_without_ratios() -> None:
    assert 0.9 == config({"algorithm": "rloo", "rollout": {"top_p": 0.9}}).rollout.top_p


@pytest.mark.parametrize("changes", [{"epochs": 2}, {"minibatch": 8}])
def test_an_on_policy_objective_is_refused_a_second_step(changes: dict[str, int]) -> None:
    sentence = refusal(recipe, "rloo", **changes)
    assert sentence.startswith("Reinforce is right only for the policy that sampled")
    ((key, value),) = changes.items()
    assert f"{key}={value}" in sentence


@pytest.mark.parametrize(
    ("aggregation", "norm_length"),
    [("seq-mean-token-sum-norm", None), ("seq-mean-token-mean", 256), ("token-mean", 256)],
)
def test_norm_length_goes_with_its_aggregation_and_no_other(
    aggregation: str, norm_length: int | None
) -> None:
    sentence = refusal(recipe, "grpo", aggregation=aggregation, norm_length=norm_length)
    assert "'seq-mean-token-sum-norm', and only with it" in sentence
    assert f"got aggregation={aggregation!r}, norm_length={norm_length!r}" in sentence


def test_norm_length_with_its_aggregation_is_fine() -> None:
    made = recipe("grpo", aggregation="seq-mean-token-sum-norm", norm_length=256)
    assert 256 == made.norm_length


@pytest.mark.parametrize("name", ["epochs", "minibatch", "norm_length"])
@pytest.mark.parametrize("value", [0, -4])
def test_sizes_must_be_at_least_one(name: str, value: int) -> None:
    changes: dict[str, Any] = {name: value}
    if name == "norm_length":
        changes["aggregation"] = "seq-mean-token-sum-norm"
    expected = f"Algorithm.{name} must be a whole number, at least 1; got {value}."
    assert expected == refusal(recipe, "grpo", **changes)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf])
def test_a_knob_out_of_its_bounds_is_refused(value: float) -> None:
    with pytest.raises(ConfigError) as caught:
        Tilt(strength=value)
    assert f"Tilt.strength must be within [0, 1]; got {value!r}." == str(caught.value)


@pytest.mark.parametrize("value", [0, 0.0, 1, 1.0])
def test_a_knob_may_stand_on_its_bounds(value: float) -> None:
    assert value == Tilt(strength=value).strength


def test_a_knob_out_of_its_bounds_in_a_config_names_its_place() -> None:
    table = {**PARTS, "objective": {"id": "clipped", "eps_low": 2}}
    sentence = refusal(config, {"algorithm": table})
    assert "algorithm.objective: Clipped.eps_low must be within [0, 1]; got 2.0." == sentence


def test_the_second_part_of_a_class_gets_a_number() -> None:
    algorithm = recipe("grpo", transforms=[Tilt(), Tilt(strength=0.1), Tilt(strength=0.2)])
    assert ["tilt", "tilt_2", "tilt_3"] == list(algorithm.slots())[2:]
    knobs = algorithm.initial_state().knobs
    assert (0.5, 0.1, 0.2) == tuple(knobs[f"tilt{n}.strength"] for n in ("", "_2", "_3"))


def test_a_number_in_a_class_name_takes_no_other_parts_slot() -> None:
    numbered = attrs.make_class("Tilt_2", [], bases=(Tilt,), frozen=True)
    algorithm = recipe("grpo", transforms=[numbered(), Tilt(), Tilt(strength=0.1)])
    assert ["tilt_2", "tilt", "tilt_3"] == list(algorithm.slots())[2:]


def test_one_object_in_two_places_is_two_parts() -> None:
    algorithm = recipe("grpo", transforms=[twin := Tilt(), twin])
    moved = algorithm.at({"tilt.strength": 0.1, "tilt_2.strength": 0.9})
    assert (Tilt(strength=0.1), Tilt(strength=0.9)) == moved.transforms
    read = config({"algorithm": algorithm}, **{"algorithm.tilt_2.strength": 0.9})
    assert (Tilt(), Tilt(strength=0.9)) == read.algorithm.transforms


@pytest.mark.parametrize(
    ("field", "kind"),
    [
        ("advantage", "AdvantageEstimator"),
        ("objective", "Objective"),
        ("transforms", "AdvantageTransform"),
        ("controllers", "Controller"),
    ],
)
def test_a_part_where_another_kind_belongs_is_refused(field: str, kind: str) -> None:
    part = Mover(knob="objective.eps_low") if field == "transforms" else Tilt()
    value = [part] if field.endswith("s") else part
    sentence = refusal(attrs.evolve, recipe("grpo"), **{field: value})
    assert f"Algorithm.{field} must be of type isentrope.{kind}; got {part!r}." == sentence


# ---------------------------------------------------------------- knobs and their controllers


def controlled(*controllers: Controller) -> Algorithm:
    return attrs.evolve(recipe("grpo"), transforms=[Tilt()], controllers=controllers)


def statistics(entropy: float = 1.0) -> Statistics:
    return Statistics(iteration=1, entropy=entropy, initial_entropy=1.0, reward=0.0, success=0.0)


def test_an_algorithms_knobs_are_its_parts_by_path() -> None:
    algorithm = controlled()
    assert {"objective.eps_low": 0.2, "objective.eps_high": 0.2, "tilt.strength": 0.5} == (
        algorithm.initial_state().knobs
    )
    assert Knob(0.0, 1.0) == algorithm.knobs()["tilt.strength"]


def test_a_controller_on_a_knob_that_is_not_there_is_refused_with_the_nearest() -> None:
    """As ADAPO's would be, without the transform whose coefficient it moves."""
    sentence = refusal(controlled, Mover(knob="tilt.strenght"))
    assert "'mover'" in sentence
    assert "'tilt.strenght' does not exist. Did you mean 'tilt.strength'?" in sentence


def test_a_controller_on_a_knob_that_is_not_there_lists_those_that_are() -> None:
    sentence = refusal(recipe, "repo-r", transforms=())
    assert "'entropy_ladder'" in sentence
    assert "'repo_r.zeta' does not exist" in sentence
    assert "objective.eps_high, objective.eps_low" in sentence


def test_two_controllers_on_one_knob_are_refused() -> None:
    knob_path = "tilt.strength"
    sentence = refusal(controlled, Mover(knob=knob_path), OtherMover(knob=knob_path))
    assert (
        "Controllers 'mover' and 'other_mover' both move 'tilt.strength'; "
        "a knob obeys one controller."
    ) == sentence


def test_two_controllers_may_move_two_knobs() -> None:
    algorithm = controlled(
        Mover(knob="tilt.strength", to=0.25), OtherMover(knob="objective.eps_high", to=0.5)
    )
    state = algorithm.initial_state()
    algorithm.control(statistics(), state)
    expected = {"objective.eps_low": 0.2, "objective.eps_high": 0.5, "tilt.strength": 0.25}
    assert expected == state.knobs
    assert {"mover": {"calls": 1}, "other_mover": {"calls": 1}} == state.memory


@pytest.mark.parametrize("value", [1.5, -0.1, math.nan, math.inf])
def test_a_controller_that_leaves_a_knobs_bounds_is_stopped(value: float) -> None:
    algorithm = controlled(Mover(knob="tilt.strength", to=value))
    state = algorithm.initial_state()
    sentence = refusal(algorithm.control, statistics(), state)
    assert f"Controller 'mover' moved 'tilt.strength' to {value!r}, outside [0, 1]." == sentence
    assert 0.5 == state.knobs["tilt.strength"]


def test_a_controller_that_leaves_its_own_range_is_stopped_though_the_knob_could() -> None:
    algorithm = controlled(Mover(knob="tilt.strength", range=(0.25, 0.75), to=0.8))
    state = algorithm.initial_state()
    sentence = refusal(algorithm.control, statistics(), state)
    assert "Controller 'mover' moved 'tilt.strength' to 0.8, outside [0.25, 0.75]." == sentence
    assert 0.5 == state.knobs["tilt.strength"]


@pytest.mark.parametrize(
    "range_", [(-0.5, 0.5), (0.5, 1.5), (0.0, math.inf), (math.nan, 1.0), (-1.0, 2.0)]
)
def test_a_controller_with_a_range_beyond_the_knobs_bounds_is_refused(
    range_: tuple[float, float],
) -> None:
    sentence = refusal(controlled, Mover(knob="tilt.strength", range=range_))
    assert (
        f"Controller 'mover' may move 'tilt.strength' within {Knob(*range_)}, but that knob's "
        "bounds are [0, 1]."
    ) == sentence


@pytest.mark.parametrize("range_", [(0.0, 1.0), (0.25, 0.75), (0.5, 0.5)])
def test_a_controller_with_a_range_inside_the_knobs_bounds_is_fine(
    range_: tuple[float, float],
) -> None:
    algorithm = controlled(Mover(knob="tilt.strength", range=range_, to=range_[0]))
    state = algorithm.initial_state()
    algorithm.control(statistics(), state)
    assert range_[0] == state.knobs["tilt.strength"]


def test_two_controllers_of_one_class_may_move_two_knobs() -> None:
    algorithm = controlled(
        Mover(knob="tilt.strength", to=0.25), Mover(knob="objective.eps_high", to=0.5)
    )
    state = algorithm.initial_state()
    algorithm.control(statistics(), state)
    assert (0.25, 0.5) == (state.knobs["tilt.strength"], state.knobs["objective.eps_high"])
    assert {"mover": {"calls": 1}, "mover_2": {"calls": 1}} == state.memory


def test_two_controllers_of_one_class_on_one_knob_are_refused_by_their_slots() -> None:
    mover = Mover(knob="tilt.strength")
    assert refusal(controlled, mover, mover).startswith("Controllers 'mover' and 'mover_2' both")


def test_a_controller_that_moves_a_knob_it_did_not_declare_is_stopped() -> None:
    algorithm = controlled(Mover(knob="tilt.strength", moved="objective.eps_high", to=0.5))
    state = algorithm.initial_state()
    sentence = refusal(algorithm.control, statistics(), state)
    assert (
        "Controller 'mover' moved 'objective.eps_high', but declares ['tilt.strength']." == sentence
    )
    assert 0.2 == state.knobs["objective.eps_high"]


def test_moved_knobs_are_set_in_the_parts_and_the_algorithm_stays_as_it_was() -> None:
    algorithm = controlled(Mover(knob="tilt.strength", to=0.25))
    state = algorithm.initial_state()
    algorithm.control(statistics(), state)
    assert (Tilt(strength=0.25),) == algorithm.at(state.knobs).transforms
    assert (Tilt(strength=0.5),) == algorithm.transforms


def test_a_part_that_needs_what_the_learner_cannot_compute_is_refused() -> None:
    @frozen
    class Greedy(AdvantageTransform):
        needs = frozenset({"entrpy"})

        def __call__(self, batch: TokenBatch) -> Any:
            return batch.advantage

    sentence = refusal(recipe, "grpo", transforms=Greedy())
    assert "Greedy.needs: 'entrpy' does not exist. Did you mean 'entropy'?" == sentence


def test_a_field_whose_type_cannot_be_read_is_the_plugins_error() -> None:
    @frozen
    class Hidden(AdvantageTransform):
        size: NowhereImported = field(default=1)  # type: ignore[name-defined]  # noqa: F821

        def __call__(self, batch: TokenBatch) -> Any:
            return batch.advantage

    algorithm = attrs.evolve(recipe("grpo"), transforms=[Hidden()])
    import isentrope.components as components

    with pytest.raises(PluginError, match="import them outside `if TYPE_CHECKING`"):
        components._override(algorithm, {"hidden": {"size": 2}})
