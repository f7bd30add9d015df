"""What a check found, and how a check says so."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field, frozen


@frozen
class Finding:
    """The outcome of one check."""

    check: str
    """Name of the check, the same from release to release: ``"global-rng"``."""
    ok: bool
    message: str = ""
    """What was wrong; where nothing was, what is worth knowing, mostly nothing."""

    def __str__(self) -> str:
        mark = "ok  " if self.ok else "FAIL"
        return f"{mark} {self.check}{': ' if self.message else ''}{self.message}"


@frozen
class Report:
    """Everything that was checked of one subject.

    A check that could not run, because another that it rests on failed, is not in it.
    """

    subject: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
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

    def __str__(self) -> str:
        passed = len(self.findings) - len(self.failures)
        head = f"{self.subject}: {passed} of {len(self.findings)} checks passed"
        return "\n  ".join([head, *map(str, self.findings)])


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
    findings: list[Finding] = field(factory=list)

    def run(self, check: str, probe: Callable[[], str | None]) -> bool:
        """Run a check and note its outcome; what `probe` returns is worth knowing.

        Returns whether it passed. An exception fails it: the subject is a stranger's code.
        """
        try:
            finding = Finding(check, ok=True, message=probe() or "")
        except UnmetError as verdict:
            finding = Finding(check, ok=False, message=str(verdict))
        except Exception as error:
            finding = Finding(check, ok=False, message=f"raised {describe(error)}")
        self.findings.append(finding)
        return finding.ok

    def report(self) -> Report:
        """Return what was found."""
        return Report(self.subject, tuple(self.findings))


def describe(value: object, limit: int = 120) -> str:
    """Return a short text for a value, or for an error with its type."""
    is_error = isinstance(value, BaseException)
    text = f"{type(value).__name__}: {value}" if is_error else repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
