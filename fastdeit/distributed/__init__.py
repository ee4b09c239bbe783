"""Cooperation of the ranks of a run: join, compare, share errors, exit."""
