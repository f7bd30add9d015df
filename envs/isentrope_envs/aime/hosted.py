"""The environment for processes that are forked: what judges load is loaded here, once for all."""

from isentrope_envs.aime.env import Aime
from isentrope_envs.aime.judge import preload

__all__ = ["Aime"]

preload()  # in the nursery of an environment's workers; two seconds and 80 MB, which they share
