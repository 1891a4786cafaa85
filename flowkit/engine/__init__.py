"""What runs a graph. Private: the doors (``dag``) are the way in."""
