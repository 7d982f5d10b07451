"""`python -m qconvert` is the same as `qconvert`."""

from qconvert.cli import main

if __name__ == "__main__":
    main()
