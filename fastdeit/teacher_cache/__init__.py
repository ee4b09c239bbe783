"""The teacher cache: a teacher's output, recorded once for each sample and read in place of the
teacher."""
