"""Teachers: networks of finished runs, and a cache of their outputs."""
