"""The student, and the teachers it is distilled from."""
