"""Experiment recipes (TOML), one file an experiment."""
