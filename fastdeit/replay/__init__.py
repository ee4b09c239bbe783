"""`fastdeit replay`: one step of a run, repeated from its folder."""
