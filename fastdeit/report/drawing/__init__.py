"""The pictures of a report: samples, attention maps, confusions; each from a run folder alone."""
