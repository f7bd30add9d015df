"""What this package brings."""

from isentrope import ComponentSpec, hookimpl


@hookimpl
def isentrope_models() -> list[ComponentSpec]:
    """Return the models."""
    return [
        ComponentSpec(
            "model",
            "tiny-qwen3",
            "isentrope_plugins.tiny.model:TinyQwen3",
            "A tiny Qwen3 made in code and warmed up on the environment's demonstrations",
        ),
        ComponentSpec(
            "model",
            "pretrained",
            "isentrope_plugins.pretrained:Pretrained",
            "Any transformers causal LM, by name or path",
        ),
    ]


@hookimpl
def isentrope_engines() -> list[ComponentSpec]:
    """Return the engines."""
    return [
        ComponentSpec(
            "engine",
            "transformers",
            "isentrope_plugins.sampler.engine:TransformersEngine",
            "Batched sampling in this process, no server; CPU or GPU",
        ),
        ComponentSpec(
            "engine",
            "vllm",
            "isentrope_plugins.vllm.engine:VllmEngine",
            "vLLM servers, running or the run's own; adapters are swapped while they serve",
        ),
    ]


@hookimpl
def isentrope_trackers() -> list[ComponentSpec]:
    """Return the trackers."""
    return [
        ComponentSpec(
            "tracker",
            "tensorboard",
            "isentrope_plugins.trackers.tensorboard:TensorBoard",
            "Event files in the run folder, for tensorboard --logdir",
        ),
        ComponentSpec(
            "tracker",
            "wandb",
            "isentrope_plugins.trackers.wandb:Wandb",
            "Weights & Biases, online or offline; isentrope[wandb]",
        ),
        ComponentSpec(
            "tracker",
            "trackio",
            "isentrope_plugins.trackers.trackio:Trackio",
            "trackio's database on this machine; isentrope[trackio]",
        ),
        ComponentSpec(
            "tracker",
            "mlflow",
            "isentrope_plugins.trackers.mlflow:Mlflow",
            "MLflow's server, or its database here; isentrope[mlflow]",
        ),
    ]


@hookimpl
def isentrope_commands() -> list[ComponentSpec]:
    """Return the verbs of the command line."""
    return [
        ComponentSpec(
            "command",
            "vllm",
            "isentrope_plugins.vllm.commands:app",
            "Install vLLM, in an interpreter of its own; serve a model; or remove it",
        )
    ]


@hookimpl
def isentrope_checks() -> list[ComponentSpec]:
    """Return what the doctor asks."""
    return [
        ComponentSpec(
            "check",
            "vllm",
            "isentrope_plugins.vllm.checks:check",
            "Whether vLLM is installed and can be imported",
        )
    ]
