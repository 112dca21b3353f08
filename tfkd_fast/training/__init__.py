"""Trains the candidates of a run: set-up, intervals, epochs, steps."""
