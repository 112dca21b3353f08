"""What sets the targets of a run and chooses among its candidates: controllers, target families, selection."""
