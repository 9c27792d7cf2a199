"""What a check reports: findings, each the first case of a table that holds. A question that fails is a finding too."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial


class Level(StrEnum):
    """How a check came out."""

    OK = "ok"
    UNKNOWN = "unknown"  # could not be looked at
    WARNING = "warning"  # works, and will hurt
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    part: str  # up, disk, gpu, checkpoint, queue, store, cluster, keda, pods, scaling
    check: str
    message: str
    remedy: str = ""  # what to do; of all but OK
    level: Level = Level.OK

    def as_json(self) -> dict[str, str]:
        """For --json."""
        return {name: str(value) for name, value in asdict(self).items()}


ok = Finding
bad = partial(Finding, level=Level.BAD)
warning = partial(Finding, level=Level.WARNING)
unknown = partial(Finding, level=Level.UNKNOWN)

# Whether it holds, and the level, message and remedy if it does. What makes the message must not fail if it does not.
Case = tuple[object, Callable[..., Finding], str, str]


def first_of(part: str, check: str, *cases: Case, otherwise: str) -> Finding:
    """The finding of the first case that holds; OK with the message `otherwise` when none does."""
    for holds, finding, message, remedy in cases:
        if holds:
            return finding(part, check, message, remedy)
    return ok(part, check, otherwise)


# Of one question. Each has shorter timeouts of its own on the network; a resolver, say, has none.
_QUESTION_TIMEOUT_S = 30.0


def answered(
    part: str,
    check: str,
    remedy: str,
    question: Callable[[], Iterable[Finding]],
    timeout_s: float = _QUESTION_TIMEOUT_S,
) -> list[Finding]:
    """What a question finds. When it fails or hangs: what it found until then, and that the rest is not known."""
    found: list[Finding] = []
    failures: list[str] = []

    def ask() -> None:
        try:
            found.extend(question())
        except Exception as error:  # a doctor that ends at one question leaves all the others open
            failures.append(f"{type(error).__name__}: {error}"[:300])

    thread = threading.Thread(target=ask, name=f"doctor {part} {check}", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        failures.append(f"no answer within {timeout_s:g} s")
    return [*found, *(unknown(part, check, f"could not be looked at ({why})", remedy) for why in failures)]


def healthy(findings: Iterable[Finding], *, strict: bool = False) -> bool:
    """Whether nothing is bad; when strict, nor a warning."""
    wrong = {Level.BAD, Level.WARNING} if strict else {Level.BAD}
    return not any(finding.level in wrong for finding in findings)


def version_of(text: str) -> tuple[int, ...]:
    """Major and minor; nothing for a build that does not know its version and says v0.0.0."""
    found = re.match(r"v?(\d+)\.(\d+)", text)
    numbers = tuple(int(part) for part in found.groups()) if found else ()
    return numbers if any(numbers) else ()
