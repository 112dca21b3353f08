"""Methods that learn from predictions of the student itself."""
