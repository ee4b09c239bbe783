"""The live teacher: its files, its identity, and the images that it takes."""
