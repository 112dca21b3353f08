"""Education distillation: the student deepens in grades, and in each it learns one more group of classes from the
teacher that specialises in it.

Source: Feng, Wu, Ren, Jing, Duan, "Education distillation: let the model learn in the school", KSEM 2025 (arXiv
2311.13811), as far as its opening and the code that was released for it tell; what is our choice is said where it is.
"""

from tfkd_fast.methods.education.method import Education, EducationSettings

__all__ = ["Education", "EducationSettings"]
