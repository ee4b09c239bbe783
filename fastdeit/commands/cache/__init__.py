"""`fastdeit cache`: record a teacher's output; merge, describe and verify recordings."""
