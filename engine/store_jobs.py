"""Looking after the rows on the disk: what job=store does, one function a verb. Each prints, and returns the exit code."""
