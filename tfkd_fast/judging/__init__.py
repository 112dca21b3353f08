"""Judges students by held-out images, and what a target would have to be to serve them."""
