"""Experiment recipes (TOML), one file an experiment; installed as `tfkd_fast.recipes`."""
