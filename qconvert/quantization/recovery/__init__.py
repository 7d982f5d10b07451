"""Gets back accuracy without labels and without training, from calibration images alone."""
