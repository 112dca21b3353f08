"""Methods that learn from several teachers."""
