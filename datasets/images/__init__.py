"""Single images beside orbits."""
