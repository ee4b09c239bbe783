"""The checks, by subject; each module imports only what every environment has, and the rest inside
its functions."""
