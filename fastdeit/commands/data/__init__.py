"""`fastdeit index`, `fastdeit pack` and `fastdeit fetch`: a data set checked, in another form, or
at another place."""
