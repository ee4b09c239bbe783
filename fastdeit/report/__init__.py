"""Reports on runs: the contents of a run folder as one record, the differences of runs, and the
page on both."""
