"""What `import fastdeit` offers: the parts of the trainer, as functions that raise, never exit."""
