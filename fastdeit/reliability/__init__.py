"""What watches a run, and the records of what went wrong."""
