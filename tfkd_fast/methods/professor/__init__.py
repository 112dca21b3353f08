"""Networks that refine what teachers say before a student learns from it."""

from tfkd_fast.methods.professor.professors import Professors
from tfkd_fast.methods.professor.settings import ProfessorSettings

__all__ = ["ProfessorSettings", "Professors"]
