"""Checks of the images of an index: by header or by decoding, at once or in parts."""
