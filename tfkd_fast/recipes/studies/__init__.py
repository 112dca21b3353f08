"""Studies (TOML), one file a table of results."""
