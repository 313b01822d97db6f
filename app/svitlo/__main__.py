"""`python -m svitlo`: the same as the `svitlo` command."""

from svitlo.cli import main

# Worker processes import this module again, under another name.
if __name__ == "__main__":
    main()
