"""From the plan to a module: one file per backend, then the proof that the file is the plan."""
