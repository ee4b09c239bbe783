"""Settings of a run: every default, the recipes, the command line and the settings file."""
