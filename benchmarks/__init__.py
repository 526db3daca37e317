"""Side-by-side measurements. Each module is one command, prints one table, and names the versions it ran on."""
