"""Image folders: which files, which labels, and the way from a file to the model's input."""
