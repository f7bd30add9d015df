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
