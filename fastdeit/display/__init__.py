"""Output for the user: the console, progress, figures."""
