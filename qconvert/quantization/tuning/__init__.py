"""The search for the fastest plan that is accurate enough."""
