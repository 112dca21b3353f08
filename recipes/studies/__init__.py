"""Studies (TOML), one file a table of results; installed as `tfkd_fast.recipes.studies`."""
