"""`python -m streamsplit` is `streamsplit`."""

from streamsplit.cli import main

main()
