"""Steering: controllers that set the targets of a run, the target families, and the selection among candidates."""
