"""What methods with teachers share."""
