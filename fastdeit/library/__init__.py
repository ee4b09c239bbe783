"""The names of `import fastdeit`: the parts of the trainer, as functions that raise, never exit."""
