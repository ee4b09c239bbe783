"""What a user sees: the console, progress, figures."""
