"""Supervision of a run, and the records of its failures. What is done about a bad step is in
run/loop.py and run/resume.py."""
