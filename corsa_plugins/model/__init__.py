"""A model: where its parts are, and every way to load, recognise, borrow, run and ask one."""
