"""`python -m serinette.cli`."""

from serinette.cli import main

main()
