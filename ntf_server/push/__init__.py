"""The delivery engine: dispatcher, payloads, the HTTP engine, and the push providers."""
