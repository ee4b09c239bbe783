"""The names of `import fastdeit`: the parts of the trainer, as functions that raise errors and
never exit."""
