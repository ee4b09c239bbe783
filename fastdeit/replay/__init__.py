"""`fastdeit replay`: one step of a run, repeated out of its folder."""
