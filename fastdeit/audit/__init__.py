"""The paper's checklist: what a run, a recipe or a checkpoint has of what DeiT specifies."""
