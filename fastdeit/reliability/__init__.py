"""Supervision of a run, and the records of its failures."""
