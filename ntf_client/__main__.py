"""`python -m ntf_client`: the command `ntf-client`."""

from ntf_client.cli import main

main()
