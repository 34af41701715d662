"""What is searched, measured, cut, repaired, saved and reported."""
