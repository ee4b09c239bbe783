"""The sources of files: web servers and the stores of fsspec; the lists that they have of files."""
