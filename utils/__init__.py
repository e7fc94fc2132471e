"""Ground that everything else stands on: registry, config, cameras, files."""
