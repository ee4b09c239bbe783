"""The teacher cache: the output of a teacher, recorded once a sample, read in place of the teacher."""
