"""Refusals of definitions, by what was found in them."""

from __future__ import annotations

from collections.abc import Sequence

from services.kit.errors import FailedPrecondition, FieldViolation, InvalidArgument
from services.registry.domain.definition import ERROR, INFO, Checked, Finding


def require_valid(checked: Checked, *, complete: bool) -> None:
    """Raise InvalidArgument if there are errors; if `complete`, raise for warnings too."""
    errors = _errors(checked)
    if errors:
        codes = {each.code for each in errors}
        raise InvalidArgument(
            codes.pop() if len(codes) == 1 else "DEFINITION_INVALID",
            _summary(errors),
            fields=[_violation(each) for each in errors],
        )
    if complete:
        require_complete(checked)


def require_up_to_date(checked: Checked, *, complete: bool) -> None:
    """Raise FailedPrecondition if a stored definition no longer fits its nodes."""
    errors = _errors(checked)
    if errors:
        raise FailedPrecondition(
            "DEFINITION_OUTDATED",
            f"the definition no longer fits its nodes: {_summary(errors)}",
            fields=[_violation(each) for each in errors],
        )
    if complete:
        require_complete(checked)


def _errors(checked: Checked) -> list[Finding]:
    return [each for each in checked.findings if each.severity == ERROR]


def require_complete(checked: Checked) -> None:
    """Raise FailedPrecondition if there are errors or warnings: a run could not start."""
    obstacles = [each for each in checked.findings if each.severity != INFO]
    if obstacles:
        raise FailedPrecondition(
            "WORKFLOW_INCOMPLETE",
            f"the workflow cannot be started as it is: {_summary(obstacles)}",
            fields=[_violation(each) for each in obstacles],
        )


def _summary(findings: Sequence[Finding]) -> str:
    first = findings[0]
    more = f"; and {len(findings) - 1} more" if len(findings) > 1 else ""
    return f"{first.place}: {first.message}{more}"


def _violation(each: Finding) -> FieldViolation:
    hint = f"; {each.hint}" if each.hint else ""
    return FieldViolation(each.place, f"{each.message}{hint}", each.code)
