"""Published systems as configurations of the same parts, one script each, and all of them compared."""
