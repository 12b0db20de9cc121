"""The live page: what a running relay does, in a browser. Loaded where `[admin]` switches it on only."""
