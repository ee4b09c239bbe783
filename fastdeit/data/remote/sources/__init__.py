"""The sources of files: folders, web servers and the stores of fsspec; and their lists of files."""
