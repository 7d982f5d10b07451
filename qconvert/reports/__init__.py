"""The report: one record, and one file for each format that shows it."""
