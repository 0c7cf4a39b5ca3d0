"""`python -m glmc` is `glmc`."""

from glmc.cli.main import main

main()
