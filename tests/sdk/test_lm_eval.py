"""lm-eval's own harness on a run of ours, with a task of our own making: there is no network."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import isentrope
from isentrope import ConfigError, Run
from tests.conftest import SMALL_MODEL

needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None and os.environ.get("CI") != "true",
    reason="lm-eval is not installed (package extra lm-eval)",
)

TASK = """
task: isentrope_letters
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: multiple_choice
test_split: test
doc_to_text: "Solve {{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
DOCUMENTS = [
    {"question": "x+1=3", "choices": [" \\boxed{2}", " \\boxed{5}"], "label": 0},
    {"question": "x+2=3", "choices": [" \\boxed{7}", " \\boxed{1}"], "label": 1},
    {"question": "x+3=9", "choices": [" \\boxed{6}", " \\boxed{4}"], "label": 0},
    {"question": "2x=6", "choices": [" \\boxed{9}", " \\boxed{3}"], "label": 1},
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that trained adapters: its policy has them merged in, and holds them beside it too."""
    return isentrope.train(
        env="arithmetic",
        algorithm={"recipe": "grpo", "epochs": 1, "minibatch": 16},
        model=SMALL_MODEL,
        rollout={"tasks": 4, "group": 8, "max_tokens": 24},
        learner={"lora": {"r": 4}},
        iterations=1,
        out=tmp_path_factory.mktemp("harness") / "run",
    )


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = folder / "letters.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    (folder / "letters.yaml").write_text(TASK.format(data=data))
    return folder


def expected_accuracy(policy: Path) -> float:
    """Do by hand what lm-eval does: the choice with the largest log-probability, for each."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(policy)
    model = AutoModelForCausalLM.from_pretrained(policy)
    right = 0
    for document in DOCUMENTS:
        prompt = f"Solve {document['question']}"
        start = len(tokenizer(prompt, add_special_tokens=False).input_ids)
        scores = []
        for choice in document["choices"]:
            ids = torch.tensor(
                [tokenizer(f"{prompt} {choice}", add_special_tokens=False).input_ids]
            )
            with torch.no_grad():
                logp = model(ids).logits.log_softmax(-1)[0]
            scores.append(sum(float(logp[i - 1, ids[0, i]]) for i in range(start, ids.shape[1])))
        right += int(scores.index(max(scores)) == document["label"])
    return right / len(DOCUMENTS)


@needs_lm_eval
@pytest.mark.slow
def test_lm_eval_scores_a_run_and_keeps_its_own_results(run, tasks, tmp_path) -> None:
    results = isentrope.lm_eval(
        run, ["isentrope_letters"], include_path=tasks, bootstrap_iters=0, out=tmp_path / "scores"
    )
    accuracy = results["results"]["isentrope_letters"]["acc,none"]
    assert expected_accuracy(run.policy) == accuracy
    (kept,) = (tmp_path / "scores").rglob("results_*.json")
    assert accuracy == json.loads(kept.read_text())["results"]["isentrope_letters"]["acc,none"]
    (samples,) = (tmp_path / "scores").rglob("samples_isentrope_letters_*.jsonl")
    assert 4 == len(samples.read_text().splitlines())


@needs_lm_eval
@pytest.mark.slow
def test_the_command_prints_lm_evals_scores_and_keeps_them_with_the_run(run, tasks) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "isentrope", "eval", str(run.path), "--lm-eval",
            "isentrope_letters", "--set", f"include_path={tasks}", "--set", "limit=2",
        ],
        capture_output=True, text=True, timeout=300, check=False, cwd=tasks,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
    )  # fmt: skip
    assert 0 == done.returncode, done.stderr
    assert "isentrope_letters" in done.stdout
    (kept,) = (run.path / "evals" / "lm-eval").rglob("results_*.json")
    assert 2 == json.loads(kept.read_text())["n-samples"]["isentrope_letters"]["effective"]


@needs_lm_eval
@pytest.mark.slow
@pytest.mark.parametrize(
    ("tasks_named", "options", "told"),
    [
        (["isentrope_leters"], {}, "Did you mean 'isentrope_letters'"),
        (["isentrope_letters"], {"num_fewshots": 3}, "Did you mean 'num_fewshot'"),
    ],
)
def test_wrong_names_are_one_sentence(run, tasks, tasks_named, options, told) -> None:
    with pytest.raises(ConfigError, match=told):
        isentrope.lm_eval(run, tasks_named, include_path=tasks, **options)


def test_what_has_no_folder_cannot_be_scored(run) -> None:
    with pytest.raises(ConfigError, match="takes a run or the folder of a model; got 'tiny-qwen3'"):
        isentrope.lm_eval("tiny-qwen3", ["gsm8k"])
    with pytest.raises(ConfigError, match="holds adapters alone"):
        isentrope.lm_eval(run.policy / "adapter", ["gsm8k"])


def test_without_lm_eval_one_sentence_says_what_to_install(run, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"lm-eval is not installed .*isentrope\[lm-eval\]"):
        isentrope.lm_eval(run, ["gsm8k"])
