"""A student and its teachers without an engine."""

from typing import Any

import pytest

from tests.methods.education.students import GROUPS, Build, context_for
from tfkd_fast.methods.education import Education, EducationSettings


@pytest.fixture
def build() -> Build:
    """`build(teachers, loss={...}, grades={...}, model=..., epochs=...)`."""

    def education(
        teachers: tuple[tuple[int, ...], ...] = GROUPS,
        *,
        loss: dict[str, Any] | None = None,
        grades: dict[str, Any] | None = None,
        **facts: Any,
    ) -> Education:
        settings = EducationSettings.model_validate({"loss": loss or {}, "grades": grades or {}})
        return Education(settings, context_for(teachers, **facts))

    return education
