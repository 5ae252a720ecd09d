"""How fast and how large: memory predicted, limits searched, the report's tables on any machine."""
