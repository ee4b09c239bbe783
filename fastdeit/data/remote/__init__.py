"""Data sets at a URL: listed, fetched to a folder, verified; later only what has changed."""
