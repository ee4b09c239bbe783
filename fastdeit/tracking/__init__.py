"""The log of a run, and the trackers that receive its numbers."""
