"""``python -m cluster`` is the program ``stillhouse``."""

from cluster.cli import main

if __name__ == "__main__":
    main()
