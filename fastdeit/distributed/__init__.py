"""What the ranks of a run do together: join, compare, share errors, exit."""
