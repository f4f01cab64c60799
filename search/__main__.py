"""`python -m search` is `prunesearch`."""

from search.cli import main

main()
