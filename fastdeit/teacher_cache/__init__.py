"""The teacher cache: a teacher's output, recorded once a sample and read in its place."""
