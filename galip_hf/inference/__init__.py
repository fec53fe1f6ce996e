"""From a scan to its translation on the same grid, with checks of its reliability."""
