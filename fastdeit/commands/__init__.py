"""The commands, one file each, which parses the command's flags and returns an exit code."""
