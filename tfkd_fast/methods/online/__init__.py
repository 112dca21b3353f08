"""Online distillation: students that train beside each other and learn from each other in every step."""
