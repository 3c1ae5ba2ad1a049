"""`python -m dino_extract` is the command line."""

from dino_extract.cli import main

if __name__ == "__main__":
    main()
