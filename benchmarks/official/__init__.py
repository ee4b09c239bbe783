"""deit's own trainer and ours on the same images, teacher and command line."""
