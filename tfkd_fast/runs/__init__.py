"""What a run is made of on disk: recipe, folder, checkpoints, log, trained student, exports."""
