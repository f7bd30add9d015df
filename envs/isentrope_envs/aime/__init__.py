"""AIME: problems whose answer is a whole number from 0 to 999, and a grader that cannot hang."""

from isentrope_envs.aime.env import Aime
from isentrope_envs.aime.grading import Reason, Verdict, grade

__all__ = ["Aime", "Reason", "Verdict", "grade"]
