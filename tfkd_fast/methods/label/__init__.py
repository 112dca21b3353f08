"""Methods whose target is made from the label."""
