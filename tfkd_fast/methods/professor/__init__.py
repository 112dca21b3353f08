"""Networks that refine the logits of teachers before a student learns from them."""

from tfkd_fast.methods.professor.professors import Professors
from tfkd_fast.methods.professor.settings import ProfessorSettings

__all__ = ["ProfessorSettings", "Professors"]
