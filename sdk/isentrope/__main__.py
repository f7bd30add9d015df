"""``python -m isentrope`` is ``isentrope``."""

from isentrope.cli import main

main()
