"""Registry, configuration, cameras and files. This package imports none of the others."""
