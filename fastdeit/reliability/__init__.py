"""Supervision of a run, and the records of its failures. The reaction to a bad step is in
run/loop.py and run/resume.py."""
