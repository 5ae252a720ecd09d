"""`python -m facescale`, as torchrun starts it."""

from facescale.cli import main

main()
