"""Checks of a machine before it trains, each in a child process with a time limit."""
