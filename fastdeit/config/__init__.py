"""What a run is asked for: every default, the recipes, the command line and the settings file."""
