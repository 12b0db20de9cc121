"""`python -m ntf_server` is `ntf-server`."""

from ntf_server.cli.main import main

main()
