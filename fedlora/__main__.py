"""`python -m fedlora`: the command, also where no script of its name is installed."""

from fedlora.cli import main

main()
