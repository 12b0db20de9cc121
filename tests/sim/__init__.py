"""The relay's inside and the world around it, in virtual time, from a seed."""
