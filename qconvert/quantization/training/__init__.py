"""Quantization-aware training: weights, their scales and ranges learn while they are rounded."""
