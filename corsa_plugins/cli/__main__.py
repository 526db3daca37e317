"""``python -m corsa_plugins.cli``: the same as ``corsa``."""

from corsa_plugins.cli.app import main

if __name__ == "__main__":
    main()
