"""`python -m moesaic`: the command line."""

from moesaic.cli.main import main

main()
