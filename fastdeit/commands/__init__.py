"""The commands: one file each; it parses its own flags and returns an exit code."""
