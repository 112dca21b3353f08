"""Judging of students by held-out images, and the influence of targets on the held-out loss."""
