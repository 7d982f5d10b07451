"""The four commands as functions: each makes what is missing, then measures what it made."""
