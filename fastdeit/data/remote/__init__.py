"""Data sets at a URL: listed, fetched to a folder, verified; later only the files that changed."""
