"""`python -m ntf_server` is `ntf-server`."""

from ntf_server.cli import main

main()
