"""Functions of a step whose launches are recorded once and then replayed by one call."""
