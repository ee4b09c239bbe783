"""`fastdeit replay`: one step of a run, taken again out of its folder."""
