"""A model of Redis in virtual time: its keys, its scripts in a real Lua, its servers and the ways to them."""
