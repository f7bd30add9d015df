"""What a check found, and how a check says so."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field, frozen

LONGEST = 8000
"""Characters of what an error says: a traceback, not the 100 kB that it may quote."""


@frozen
class Finding:
    """The outcome of one check."""

    check: str
    """Name of the check, the same from release to release: ``"global-rng"``."""
    ok: bool
    """Whether nothing was wrong."""
    message: str = ""
    """What was wrong, or why the check was not run."""
    ran: bool = True
    """Whether it was run at all."""

    def __str__(self) -> str:
        mark = "FAIL" if not self.ok else "ok  " if self.ran else "skip"
        return f"{mark} {self.check}{': ' if self.message else ''}{self.message}"


Listener = Callable[[Finding], object]
"""Called with each finding as its check ends."""


@frozen
class Report:
    """Everything that was checked of one subject.

    A check that could not run, because another that it rests on failed, is not in it.
    """

    subject: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether every check that was run passed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The checks that did not pass."""
        return tuple(finding for finding in self.findings if not finding.ok)

    def raise_for_failures(self) -> None:
        """Raise an `AssertionError` with one line for each failure, if there is any."""
        if not self.ok:
            lines = [f"{f.check}: {' '.join(f.message.split())}" for f in self.failures]
            raise AssertionError("\n  ".join([f"{self.subject} breaks its contract.", *lines]))

    @property
    def summary(self) -> str:
        """How many checks passed, of those that were run."""
        ran = sum(finding.ran for finding in self.findings)
        said = f"{self.subject}: {ran - len(self.failures)} of {ran} checks passed"
        return said if ran == len(self.findings) else f"{said}, {len(self.findings) - ran} not run"

    def __str__(self) -> str:
        return "\n  ".join([self.summary, *map(str, self.findings)])


class UnmetError(Exception):
    """A check's verdict: the subject does not do what its contract says."""


def require(condition: object, sentence: str) -> None:
    """Fail the running check, saying what was wrong, unless `condition` holds."""
    if not condition:
        raise UnmetError(sentence)


@define
class Inspection:
    """A report in the making."""

    subject: str
    listener: Listener | None = None
    findings: list[Finding] = field(factory=list)

    def run(self, check: str, probe: Callable[[], str | None]) -> bool:
        """Run a check and note its outcome; what `probe` returns is why it could not be run.

        Returns whether it passed. An exception fails it: the subject is a stranger's code.
        """
        try:
            reason = probe()
            finding = Finding(check, ok=True, message=reason or "", ran=not reason)
        except UnmetError as verdict:
            finding = Finding(check, ok=False, message=str(verdict))
        except Exception as error:
            finding = Finding(check, ok=False, message=f"raised {describe(error)}")
        self.findings.append(finding)
        if self.listener is not None:
            self.listener(finding)
        return finding.ok

    def report(self) -> Report:
        """Return what was found."""
        return Report(self.subject, tuple(self.findings))


def describe(value: object, limit: int = 120) -> str:
    """Return a short text for a value; for an error its type and what it says, which may be long.

    limit: characters of a value.
    """
    if isinstance(value, BaseException):
        text = f"{type(value).__name__}: {value}"
        return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}...{text[-LONGEST // 2 :]}"
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
