"""Latency, accuracy and their statistics. Knows callables and images, nothing of quantization."""
