"""The groups of the comparison of runs, each a list of rows with a value for each run."""
