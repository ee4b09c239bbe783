"""`fastdeit pack` and `fastdeit fetch`: a data set in another form, or at another place."""
