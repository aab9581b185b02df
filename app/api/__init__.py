"""HTTP: one thin module for each resource."""
