"""Searches recipes: trials with values from ranges, suggested and pruned by Optuna, judged on held-out images alone."""
