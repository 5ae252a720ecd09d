"""Finds faces and their five points on photographs."""
