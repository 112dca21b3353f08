"""The base class of methods with teachers, and corrections and combinations of the logits of teachers."""
