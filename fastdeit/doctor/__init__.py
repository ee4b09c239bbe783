"""Checks of a machine before it trains: each in a process of its own, with a time limit."""
