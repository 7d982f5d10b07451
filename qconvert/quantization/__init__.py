"""Affine arithmetic, ranges, calibration, the plan, and its simulation and lowering."""
