"""What the calibration images are worth: whether they are enough, alike, and all of one kind."""
