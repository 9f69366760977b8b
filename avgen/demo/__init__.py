"""`avgen demo`: see the whole thing work, with figures, on a machine with no GPU and no download."""
