"""Parts of a step that are recorded once and repeated with one call."""
