"""A data set as a table, the DALI graph that executes the plan, and the loader that hands batches
to torch."""
