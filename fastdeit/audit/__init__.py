"""The paper's checklist: what DeiT specifies beside what a run, a recipe or a checkpoint has."""
