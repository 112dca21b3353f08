"""Methods whose targets a controller sets, with or without selection among candidates."""
