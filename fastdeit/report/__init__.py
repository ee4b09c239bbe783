"""Reports on runs: what a run folder holds as one record, how runs differ, and the page of it."""
