"""Isentrope: environments, objectives and entropy controllers for LLM reinforcement learning.

Everything public is here, and only here. Importing this package loads no torch and does no I/O:
each name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isentrope import diagnostics as diagnostics
    from isentrope import installations as installations
    from isentrope import testing as testing
    from isentrope import validation as validation
    from isentrope.adapters import GymText as GymText
    from isentrope.algorithms import Aggregation as Aggregation
    from isentrope.algorithms import Algorithm as Algorithm
    from isentrope.algorithms import AlgorithmState as AlgorithmState
    from isentrope.components import component as component
    from isentrope.components import make as make
    from isentrope.components import make_apart as make_apart
    from isentrope.components import recipe as recipe
    from isentrope.config import EarlyStop as EarlyStop
    from isentrope.config import EvaluationConfig as EvaluationConfig
    from isentrope.config import LearnerConfig as LearnerConfig
    from isentrope.config import LoraConfig as LoraConfig
    from isentrope.config import RolloutConfig as RolloutConfig
    from isentrope.config import TrainConfig as TrainConfig
    from isentrope.doctor.diagnosis import Diagnosis as Diagnosis
    from isentrope.doctor.rounds import diagnose as diagnose
    from isentrope.engines import Adapter as Adapter
    from isentrope.engines import Completion as Completion
    from isentrope.engines import Engine as Engine
    from isentrope.engines import EngineConfig as EngineConfig
    from isentrope.engines import EngineUse as EngineUse
    from isentrope.engines import Sampling as Sampling
    from isentrope.engines import WeightsRef as WeightsRef
    from isentrope.environments import Info as Info
    from isentrope.environments import Task as Task
    from isentrope.environments import TaskSet as TaskSet
    from isentrope.environments import TextEnv as TextEnv
    from isentrope.environments import Unicode as Unicode
    from isentrope.episodes import Episode as Episode
    from isentrope.episodes import Message as Message
    from isentrope.episodes import Segment as Segment
    from isentrope.episodes import Status as Status
    from isentrope.episodes import StopReason as StopReason
    from isentrope.episodes import Usage as Usage
    from isentrope.errors import ConfigError as ConfigError
    from isentrope.errors import EngineError as EngineError
    from isentrope.errors import EnvironmentContractError as EnvironmentContractError
    from isentrope.errors import GraderError as GraderError
    from isentrope.errors import IsentropeError as IsentropeError
    from isentrope.errors import PluginError as PluginError
    from isentrope.errors import TrainingError as TrainingError
    from isentrope.errors import UnknownNameError as UnknownNameError
    from isentrope.evaluation.attempts import Attempt as Attempt
    from isentrope.evaluation.comparison import Comparison as Comparison
    from isentrope.evaluation.estimates import Estimate as Estimate
    from isentrope.evaluation.harness import lm_eval as lm_eval
    from isentrope.evaluation.result import Evaluation as Evaluation
    from isentrope.evaluation.run import evaluate as evaluate
    from isentrope.hookspecs import hookimpl as hookimpl
    from isentrope.loop import train as train
    from isentrope.models import LanguageModel as LanguageModel
    from isentrope.models import ModelConfig as ModelConfig
    from isentrope.notebook.blocks import ALL_BLOCKS as ALL_BLOCKS
    from isentrope.notebook.blocks import BARE_CODE as BARE_CODE
    from isentrope.notebook.blocks import FIRST_BLOCK as FIRST_BLOCK
    from isentrope.notebook.blocks import CodeBlocks as CodeBlocks
    from isentrope.notebook.confine import confine as confine
    from isentrope.notebook.env import NotebookEnv as NotebookEnv
    from isentrope.notebook.notebook import Cell as Cell
    from isentrope.notebook.notebook import NotebookLimits as NotebookLimits
    from isentrope.parts import AdvantageEstimator as AdvantageEstimator
    from isentrope.parts import AdvantageTransform as AdvantageTransform
    from isentrope.parts import Controller as Controller
    from isentrope.parts import Knob as Knob
    from isentrope.parts import Objective as Objective
    from isentrope.parts import Statistics as Statistics
    from isentrope.parts import TokenBatch as TokenBatch
    from isentrope.parts import knob as knob
    from isentrope.planning.plan import Plan as Plan
    from isentrope.planning.planner import plan as plan
    from isentrope.reporting.pages import compare as compare
    from isentrope.reporting.pages import report as report
    from isentrope.reporting.serving import view as view
    from isentrope.rollout.endpoint import Endpoint as Endpoint
    from isentrope.rollout.ledger import TokenLedger as TokenLedger
    from isentrope.runs import Run as Run
    from isentrope.specs import ComponentSpec as ComponentSpec
    from isentrope.specs import EnvRef as EnvRef
    from isentrope.specs import EnvSpec as EnvSpec
    from isentrope.targets import EntropyController as EntropyController
    from isentrope.targets import EntropyTarget as EntropyTarget
    from isentrope.targets import Schedule as Schedule
    from isentrope.trackers import TrackedRun as TrackedRun
    from isentrope.trackers import Tracker as Tracker
    from isentrope.trackers import TrackerConfig as TrackerConfig
    from isentrope.workers.limits import WorkerConfig as WorkerConfig

_HOME = {
    "adapters": "GymText",
    "algorithms": "Aggregation Algorithm AlgorithmState",
    "components": "component make make_apart recipe",
    "config": "EarlyStop EvaluationConfig LearnerConfig LoraConfig RolloutConfig TrainConfig",
    "doctor.diagnosis": "Diagnosis",
    "doctor.rounds": "diagnose",
    "engines": "Adapter Completion Engine EngineConfig EngineUse Sampling WeightsRef",
    "environments": "Info Task TaskSet TextEnv Unicode",
    "episodes": "Episode Message Segment Status StopReason Usage",
    "errors": "ConfigError EngineError EnvironmentContractError GraderError IsentropeError "
    "PluginError TrainingError UnknownNameError",
    "evaluation.attempts": "Attempt",
    "evaluation.comparison": "Comparison",
    "evaluation.estimates": "Estimate",
    "evaluation.harness": "lm_eval",
    "evaluation.result": "Evaluation",
    "evaluation.run": "evaluate",
    "hookspecs": "hookimpl",
    "loop": "train",
    "models": "LanguageModel ModelConfig",
    "notebook.blocks": "ALL_BLOCKS BARE_CODE CodeBlocks FIRST_BLOCK",
    "notebook.confine": "confine",
    "notebook.env": "NotebookEnv",
    "notebook.notebook": "Cell NotebookLimits",
    "parts": "AdvantageEstimator AdvantageTransform Controller Knob Objective Statistics "
    "TokenBatch knob",
    "planning.plan": "Plan",
    "planning.planner": "plan",
    "reporting.pages": "compare report",
    "reporting.serving": "view",
    "rollout.endpoint": "Endpoint",
    "rollout.ledger": "TokenLedger",
    "runs": "Run",
    "specs": "ComponentSpec EnvRef EnvSpec",
    "targets": "EntropyController EntropyTarget Schedule",
    "trackers": "TrackedRun Tracker TrackerConfig",
    "workers.limits": "WorkerConfig",
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names.split()}

_MODULES = ("diagnostics", "installations", "testing", "validation")

__all__ = sorted([*_MODULE_OF, *_MODULES, "__version__"])


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("isentrope")
    if name in _MODULES:
        return importlib.import_module(f"isentrope.{name}")
    try:
        module = importlib.import_module(f"isentrope.{_MODULE_OF[name]}")
    except KeyError:
        raise AttributeError(f"module 'isentrope' has no attribute {name!r}") from None
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return __all__
