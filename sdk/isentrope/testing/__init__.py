"""The conformance kit: call one of these on what you wrote, from a test of your own.

::

    from isentrope.testing import check_env

    def test_my_environment_keeps_the_contract():
        check_env("maker/my-env").raise_for_failures()

Each returns a `Report` and raises nothing, whatever the plugin does: a wrong plugin is a finding.
Importing this loads no torch.
"""

from isentrope.testing._report import Finding as Finding
from isentrope.testing._report import Report as Report
from isentrope.testing.by_id import check as check
from isentrope.testing.controllers import check_controller as check_controller
from isentrope.testing.engines import check_engine as check_engine
from isentrope.testing.environments import check_env as check_env
from isentrope.testing.objectives import check_objective as check_objective

__all__ = [
    "Finding",
    "Report",
    "check",
    "check_controller",
    "check_engine",
    "check_env",
    "check_objective",
]
