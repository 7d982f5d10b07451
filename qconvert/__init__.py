"""qconvert: a trained PyTorch image model in, a verified int8 CPU model in TorchScript out."""

__version__ = "0.1.0"
