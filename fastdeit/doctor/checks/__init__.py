"""The checks, by subject. A module imports only what every environment has; its functions import
the rest."""
