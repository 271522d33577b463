"""`python -m node` is `paris-node`."""

from node.cli import main

if __name__ == "__main__":
    main()
