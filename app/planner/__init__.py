"""From what users asked for to what the kernel shall hold, and from there to operations. Pure."""
