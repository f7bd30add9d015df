"""lm-eval: a score of a policy that is not ours, by another's tasks, prompts and grading."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isentrope.errors import ConfigError, UnknownNameError
from isentrope.evaluation.plan import as_run, model_of
from isentrope.rollout.endpoint import is_url
from isentrope.runs import Run

_OURS = {"model", "model_args", "tasks", "task_manager", "evaluation_tracker", "log_samples"}
"""Arguments of ``simple_evaluate`` that are not the user's to give."""


def lm_eval(
    policy: Run | str | Path,
    tasks: Sequence[str],
    *,
    out: str | Path | None = None,
    include_path: str | Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Have lm-eval (package extra ``lm-eval``) score a policy; return its own results.

    policy: a run or its folder, or the folder of a model, adapters merged in.
    tasks: names that lm-eval knows. include_path: a folder of YAML files that define more of them.
    out: where lm-eval writes its results and samples; None: ``evals/lm-eval``, in the run's folder
    if it is one.
    options: any other arguments of lm-eval's ``simple_evaluate``, such as ``num_fewshot=5``,
    ``limit=10``, ``batch_size=8``, ``apply_chat_template=True`` or ``device="cuda"``.

    Raises `ConfigError` where lm-eval is not installed, or the policy, a task or an option is
    wrong.
    """
    import torch

    folder = _folder_of(policy)
    try:
        from lm_eval import simple_evaluate
        from lm_eval.loggers import EvaluationTracker
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(
            f"lm-eval is not installed ({error}): pip install 'isentrope[lm-eval]'."
        ) from error
    known = inspect.signature(simple_evaluate).parameters.keys() - _OURS
    for name in options:
        if name not in known:
            raise UnknownNameError("Argument of lm-eval", name, [*known, "include_path"])
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    for task in tasks:
        if not manager.match_tasks([task]):
            raise UnknownNameError("Task of lm-eval", task, manager.all_tasks)
    run = as_run(policy)
    place = Path("evals/lm-eval") if run is None else run.path / "evals" / "lm-eval"
    tracker = EvaluationTracker(output_path=str(place if out is None else out))
    here = "cuda" if torch.cuda.is_available() else "cpu"  # its own guess needs a GPU
    results = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder)},
        tasks=list(tasks),
        task_manager=manager,
        evaluation_tracker=tracker,
        **{"device": here, **options},
    )
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for task, found in samples.items():
        tracker.save_results_samples(task_name=task, samples=found)
    return dict(results)


def _folder_of(policy: Run | str | Path) -> Path:
    run = as_run(policy)
    if is_url(policy):
        raise ConfigError(
            "lm-eval takes a run or the folder of a model here, and no endpoint, for which it has "
            "models of its own (lm_eval --model local-chat-completions)."
        )
    if run is None and (Path(str(policy)) / "adapter_config.json").is_file():
        raise ConfigError(
            f"{policy} holds adapters alone; RUN/policy, the folder above, has them merged in."
        )
    named = model_of(policy)
    if not isinstance(named, dict):
        raise ConfigError(f"lm-eval takes a run or the folder of a model; got {policy!r}.")
    return Path(named["path"])
