"""Which version of ntf-relay this is; the package is built with it."""

VERSION = "0.1.0"
