"""`python -m svitlo`: the same as the `svitlo` command."""

from svitlo.cli import main

main()
