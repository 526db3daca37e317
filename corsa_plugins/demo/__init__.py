"""Every method on the embedded testbed."""
