"""Torch says once a process that quantized dtypes are deprecated; this import hears it."""

import qconvert.torchscript  # noqa: F401
