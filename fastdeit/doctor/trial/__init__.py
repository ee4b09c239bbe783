"""Ten seconds of the real loader and the real step."""
