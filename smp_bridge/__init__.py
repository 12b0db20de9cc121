"""The SimpleX side of ntf-relay: pure protocol codecs at the bottom, asyncio clients on top."""
