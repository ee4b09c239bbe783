"""What watches a run, and what it remembers of trouble. Importing the room itself imports nothing."""
